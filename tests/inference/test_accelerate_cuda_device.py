"""``vitfast.accelerate`` on a GPU. Tests that need no GPU are in test_accelerate_cuda.py."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import vitfast
from support.accelerable import BUILDERS, accelerable, distance, sample_images, tensors_of
from support.cast_model import cast_model, fp8_on_cpu
from support.exit_models import EXIT_MODELS, exit_model, random_images

pytestmark = pytest.mark.cuda

TOLERANCE = {"fp32": 1e-2, "fp16": 1e-2, "fp16_32": 1e-2}  # fp32 may be TF32


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "fp16_32"])
@pytest.mark.parametrize("kind", BUILDERS)
@torch.no_grad()
def test_every_model_runs_in_graphs(kind, precision):
    source = accelerable(kind)
    images = sample_images(source)
    reference = copy.deepcopy(source).double()(images.double())
    fast = vitfast.accelerate(source, precision, device="cuda", check=images, graph_batch=2)
    assert fast.report().fell_back == ()
    assert "CUDA graphs of up to 2 images" in fast.report().kernels
    result = fast(images.cuda())
    assert all(one.is_cuda and one.dtype == torch.float32 for one in tensors_of(result))
    half = copy.deepcopy(source).cuda().bfloat16()(images.cuda().bfloat16())
    assert distance(result, reference) < TOLERANCE.get(precision, 2 * distance(half, reference) + 1e-3)
    again = vitfast.accelerate(source, precision, device="cuda", graph_batch=0)(images.cuda())
    assert distance(result, [one.cpu().double() for one in tensors_of(again)]) < 2e-2
    assert next(source.parameters()).device.type == "cpu"


@pytest.mark.parametrize("precision", ["fp16_16", "int8", "fp8"])
@pytest.mark.parametrize("kind", ["vitfast: vit", "timm: LayerScale, registers"])
@torch.no_grad()
def test_low_precisions_agree_with_those_of_a_cpu(kind, precision):
    if precision == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("fp8 needs compute capability 8.9")
    source = accelerable(kind)
    images = sample_images(source)
    with fp8_on_cpu():
        expected = cast_model(source, precision)(images)
    fast = vitfast.accelerate(source, precision, device="cuda", graph_batch=2)
    assert distance(fast(images.cuda()), expected.double()) < {"fp16_16": 3e-3}.get(precision, 5e-2)


@pytest.mark.parametrize("kind", EXIT_MODELS)
@torch.no_grad()
def test_images_leave_early(kind):
    model = exit_model(kind)
    images = random_images(model, 13)
    fast = vitfast.accelerate(model, "fp32", device="cuda", graph_batch=8)
    confidence = torch.stack([logits.softmax(1).amax(1) for logits in fast(images.cuda())])
    thresholds = confidence.sort(dim=1).values[:, 5:7].mean(dim=1).tolist()
    early = vitfast.EarlyExit(fast, thresholds)
    for _ in range(2):
        logits, exits = early(images.cuda())
        expected, expected_exits = vitfast.EarlyExit(model, thresholds)(images)
        assert torch.equal(exits.cpu(), expected_exits)
        torch.testing.assert_close(logits.cpu(), expected, rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_an_exit_costs_the_host_one_wait():
    model = exit_model("deit")
    images = random_images(model, 8).cuda()
    fast = vitfast.accelerate(model, "bf16", device="cuda")
    early = vitfast.EarlyExit(fast, [2.0] * model.num_exits)
    early(images)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        early(images)
    waits = [event for event in profile.events() if "DtoH" in event.name]
    assert len(waits) == model.num_exits - 1


@torch.no_grad()
def test_batches_of_all_sizes_run_in_bounded_memory():
    source = accelerable("vitfast: vit")
    fast = vitfast.accelerate(source, "bf16", device="cuda", graph_batch=16)
    images = sample_images(source, 40).cuda()
    expected = vitfast.accelerate(source, "bf16", device="cuda", graph_batch=0)(images)
    used = []
    for _ in range(3):
        for batch in (0, 1, 2, 3, 7, 16, 17, 40):
            torch.testing.assert_close(fast(images[:batch]), expected[:batch], rtol=2e-2, atol=2e-2)
        torch.cuda.synchronize()
        used.append(torch.cuda.memory_allocated())
    assert used[1] == used[2]


@torch.no_grad()
def test_streams_and_threads_take_turns():
    source = accelerable("vitfast: vit")
    fast = vitfast.accelerate(source, "bf16", device="cuda", graph_batch=8)
    batches = [sample_images(source, batch, seed=batch).cuda() for batch in (1, 5, 8, 11)] * 8
    expected = [fast(images) for images in batches]
    torch.cuda.synchronize()

    def run(images):
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            result = fast(images)
            torch.cuda.current_stream().synchronize()
        return result

    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(run, batches), expected, strict=True):
            assert torch.equal(found, wanted)


@torch.no_grad()
def test_within_another_capture_it_is_part_of_that():
    source = accelerable("vitfast: vit")
    fast = vitfast.accelerate(source, "bf16", device="cuda", graph_batch=4)
    images = sample_images(source, 4).cuda()
    expected = fast(images)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = fast(images)
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(result, expected, rtol=2e-2, atol=2e-2)


@torch.no_grad()
def test_copies_make_their_own_graphs():
    source = accelerable("vitfast: vit")
    fast = vitfast.accelerate(source, "bf16", device="cuda")
    images = sample_images(source).cuda()
    expected = fast(images)
    copied = copy.deepcopy(fast)
    del fast
    assert torch.equal(copied(images), expected)


def test_images_of_the_cpu_and_unknown_precisions_are_rejected():
    source = accelerable("vitfast: vit")
    fast = vitfast.accelerate(source.cuda(), "bf16")
    assert fast.device.type == "cuda"
    with pytest.raises(ValueError, match="images are on cpu, but the accelerated model is on cuda:0; move them"):
        fast(sample_images(source))
    with pytest.raises(vitfast.UserError, match="precision='int4' is not supported on cuda"):
        vitfast.accelerate(source, "int4")
