from __future__ import annotations

import copy
import importlib
import warnings

import pytest
import torch

import vitfast
from support.accelerable import BUILDERS, accelerable, distance, sample_images, tensors_of
from vitfast.errors import UserError
from vitfast.inference.modules.linear import InferenceLinear

# largest relative L2 distance of a result to float64; bf16 has a separate rule below
TOLERANCE = {"fp32": 1e-5, "fp16_32": 3e-3, "int8": 6e-2}

FP16_32 = (
    "vitfast: vit",
    "vitfast: convit",
    "vitfast: t2t",
    "vitfast: dvt over deit",
    "timm: map pooling",
    "torchvision",
)


@pytest.fixture(autouse=True)
def _no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a part that falls back causes a warning
        yield


@pytest.mark.parametrize("kind", BUILDERS)
@torch.no_grad()
def test_every_model_runs_without_falling_back(kind):
    source = accelerable(kind)
    images = sample_images(source)
    before = {key: tensor.clone() for key, tensor in source.state_dict().items()}
    reference = copy.deepcopy(source).double()(images.double())
    for precision in ("fp32", "int8") if kind not in FP16_32 else ("fp32", "int8", "fp16_32"):
        fast = vitfast.accelerate(source, precision, check=images)
        assert fast.report().fell_back == ()
        result = fast(images)
        assert type(result) is type(source(images))
        assert [one.shape for one in tensors_of(result)] == [one.shape for one in tensors_of(reference)]
        assert all(one.dtype == torch.float32 for one in tensors_of(result))
        assert distance(result, reference) < TOLERANCE[precision], precision
        assert fast.report().agreement.worst_error < TOLERANCE[precision]
        check_state(fast, before, precision)
    half = copy.deepcopy(source).bfloat16()(images.bfloat16())
    in_bf16 = vitfast.accelerate(source, "bf16")(images)
    assert distance(in_bf16, reference) < 2 * distance(half, reference) + 1e-3
    assert distance(in_bf16, reference) > 1e-4, "it did not run in bf16"


def check_state(fast, source_state, precision) -> None:
    """The state has the source's keys, and its values as they are stored."""
    state = fast.state_dict()
    assert list(state) == list(source_state)
    assert all(state[key].shape == tensor.shape for key, tensor in source_state.items())
    changed = [key for key, tensor in source_state.items() if not torch.equal(state[key], tensor)]
    assert bool(changed) == (precision != "fp32"), changed


@pytest.mark.parametrize(
    "kind",
    ["vitfast: vit", "timm: vit", "timm: LayerScale, registers", "timm: Swin", "timm: SAM, neck", "vitfast: convit"],
)
def test_forward_features_returns_all_tokens(kind):
    source = accelerable(kind)
    images = sample_images(source)
    with torch.no_grad():
        tokens = source.forward_features(images)
    torch.testing.assert_close(vitfast.accelerate(source).forward_features(images), tokens, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("timm: any size", (48, 32)),
        ("timm: DINOv3", (48, 64)),
        ("transformers: DINOv3ViTModel", (50, 64)),
        ("transformers: Dinov2ForImageClassification", (40, 52)),
        ("transformers: Dinov2WithRegistersForImageClassification", (64, 48)),
        ("timm: Swin, any size", (28, 40)),
        ("timm: SAM", (28, 40)),
        ("transformers: BeitModel", (48, 64)),
        ("transformers: InternVLVisionModel", (48, 64)),
        ("transformers: Data2VecVisionModel", (48, 64)),
        ("transformers: SwinForImageClassification", (28, 40)),
        ("transformers: SwinBackbone", (12, 20)),
        ("transformers: Swinv2Model", (28, 40)),
    ],
)
@torch.no_grad()
def test_images_of_other_sizes_run_where_the_source_takes_them(kind, size):
    source = accelerable(kind)
    images = torch.randn(2, 3, *size)
    fast = vitfast.accelerate(source)
    for result, expected in zip(tensors_of(fast(images)), tensors_of(source(images)), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        ("transformers: DINOv3ViTModel", (8, 64), r"at least as large as a patch, \(16, 16\), got \[2, 3, 8, 64\]"),
        ("timm: DINOv3", (40, 32), r"sides that are multiples of \(16, 16\), got \[2, 3, 40, 32\]"),
        ("transformers: SwinModel", (30, 32), r"sides that are multiples of \(4, 4\), got \[2, 3, 30, 32\]"),
        ("transformers: SwinModel", (8, 32), r"windows of \(3, 3\) tokens do not fit a grid of \(2, 8\) tokens"),
        ("timm: Swin V2", (48, 32), r"must have shape \[B, 3, 32, 32\], got \[2, 3, 48, 32\]; resize them"),
        ("timm: EVA-02", (48, 32), r"must have shape \[B, 3, 32, 32\], got \[2, 3, 48, 32\]; resize them"),
    ],
)
def test_images_that_do_not_fit_are_named(kind, size, message):
    with pytest.raises(ValueError, match=message):
        vitfast.accelerate(accelerable(kind))(torch.randn(2, 3, *size))


@pytest.mark.parametrize("batch", [0, 1, 5])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16_32", "int8"])
def test_any_batch_size_runs_and_images_are_independent(precision, batch):
    source = accelerable("vitfast: vit")
    fast = vitfast.accelerate(source, precision)
    images = sample_images(source, batch)
    assert fast(images).shape == (batch, 7)
    if batch == 5:
        broken = images.clone()
        broken[2, 0, 3, 3] = torch.nan
        result = fast(broken)
        assert result[2].isnan().any()
        others = [0, 1, 3, 4]
        torch.testing.assert_close(result[others], fast(images)[others], rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_base_patch16_siglip_224", {"embed_dim": 192, "num_heads": 12, "layer_scale": 0.5}),
    ],
)
def test_batch_and_threads_change_no_bit(name, fields, precision):
    """Sizes at which torch's attention and its softmax over another than the last dimension depend on both."""
    source = vitfast.create_model(name, depth=1, num_classes=7, **fields).eval()
    torch.nn.init.normal_(source.head.weight)
    fast = vitfast.accelerate(source, precision)
    images = sample_images(source, 9)
    expected = tensors_of(fast(images))
    before = torch.get_num_threads()
    try:
        for threads, batch in ((1, 9), (2, 1), (2, 4)):
            torch.set_num_threads(threads)
            results = zip(*(tensors_of(fast(part)) for part in images.split(batch)), strict=True)
            for parts, other in zip(results, expected, strict=True):
                assert torch.equal(torch.cat(parts), other)
    finally:
        torch.set_num_threads(before)


def test_the_source_is_left_alone():
    source = accelerable("timm: vit").train()
    before = {key: tensor.clone() for key, tensor in source.state_dict().items()}
    vitfast.accelerate(source, "bf16", check=sample_images(source))
    assert source.training
    assert all(parameter.requires_grad for parameter in source.parameters())
    assert all(torch.equal(before[key], tensor) for key, tensor in source.state_dict().items())
    fast = vitfast.accelerate(source)
    images = sample_images(source)
    result = fast(images)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.zero_()
    assert torch.equal(fast(images), result), "the accelerated model shares tensors with its source"


def test_weights_are_not_kept_twice():
    source = accelerable("vitfast: vit")
    for precision, bytes_a_weight in (("fp32", 4), ("bf16", 2), ("fp16_32", 2), ("int8", 1)):
        fast = vitfast.accelerate(source, precision)
        held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in fast.buffers()}
        for tensor in fast._state.values():
            if tensor is not None:
                held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        matrices = sum(p.numel() for p in source.parameters() if p.dim() == 2 or p.dim() == 4)
        others = sum(p.numel() for p in source.parameters()) - matrices
        # kernels round widths of 7 and 32 up to 64, which only such small models notice
        packed = sum(m.weight.nbytes for m in fast.modules() if isinstance(m, InferenceLinear))
        assert sum(held.values()) < packed + 1.3 * 4 * others + 4096
        assert packed < 4.5 * bytes_a_weight * matrices


def test_bf16_without_instructions_is_logged_once(caplog, monkeypatch):
    module = importlib.import_module("vitfast.inference.accelerate")
    module._say_that_bf16_is_not_faster.cache_clear()
    source = accelerable("timm: vit")
    for is_fast, precision, lines in ((True, "bf16", 0), (False, "fp32", 0), (False, "bf16", 1), (False, "bf16", 1)):
        monkeypatch.setattr(module, "has_fast_bf16", lambda device, is_fast=is_fast: is_fast)
        vitfast.accelerate(source, precision)
        assert len(caplog.records) == lines
    assert "precision='bf16': this CPU has no fast bf16 instructions: it is not faster" in caplog.text


def test_the_report_reads_as_a_table():
    source = accelerable("timm: vit")
    fast = vitfast.accelerate(source, "bf16", check=sample_images(source))
    report = fast.report()
    assert isinstance(report, vitfast.AccelerationReport)
    assert [layer.name for layer in report.layers] == ["embedding", "blocks.0", "blocks.1", "head"]
    assert report.agreement.num_images == 3
    assert report.agreement.worst_layer in ("blocks.0", "blocks.1")
    text = str(report)
    assert "4 of 4 parts accelerated" in text
    assert "agreement with the source on 3 images: same top class for " in text
    assert "cosine similarity of the outputs at least 0.99" in text
    assert "largest difference of an output " in text
    assert "layer with the largest error blocks." in text


@torch.no_grad()
def test_the_agreement_is_that_of_all_batches_of_a_loader():
    source = accelerable("timm: vit")
    images = sample_images(source, 5)
    fast = vitfast.accelerate(source, "bf16", check=images)
    found, expected = fast(images), source(images)
    assert fast.report().agreement.max_difference == pytest.approx(float((found - expected).abs().max()), rel=1e-6)
    whole = fast.report().agreement
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, torch.zeros(5)), batch_size=2)
    for batches in (loader, images.split(2), [{"pixel_values": one} for one in images.split(2)]):
        agreement = vitfast.accelerate(source, "bf16", check=batches).report().agreement
        assert (agreement.num_images, agreement.top1_agreement) == (5, whole.top1_agreement)
        assert (agreement.cosine, agreement.max_difference) == pytest.approx(
            (whole.cosine, whole.max_difference), rel=1e-4
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "fp8"}, "precision='fp8' is not supported on cpu; allowed: fp32, bf16, fp16_32, int8"),
        ({"device": "meta"}, "device=meta: accelerate runs on cpu and cuda"),
        ({"device": "cuda:99"}, "device=cuda:99: torch sees .* CUDA GPUs here; give device='cpu'"),
        ({"graph_batch": 100}, "graph_batch=100 must be a power of two, or 0"),
        ({"check": torch.zeros(0, 3, 32, 32)}, "check= takes images"),
        ({"check": []}, "check= takes images .* or a loader"),
        ({"check": ["cat.jpg"]}, "check= takes images"),
        ({"check": 3}, "check= takes images"),
    ],
)
def test_wrong_arguments_are_rejected(arguments, message):
    with pytest.raises(vitfast.UserError, match=message):
        vitfast.accelerate(accelerable("vitfast: vit"), **arguments)


def test_half_precision_sources_are_rejected():
    with pytest.raises(vitfast.UserError, match=r"parameters are torch.bfloat16.*model.float\(\)"):
        vitfast.accelerate(accelerable("timm: vit").bfloat16())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_no_int8(value):
    source = accelerable("vitfast: vit")
    with torch.no_grad():
        source.blocks[1].mlp.fc2.weight[3, 5] = value
    with pytest.raises(UserError, match=r"^blocks\.1\.mlp\.fc2\.weight: int8 holds no NaN or infinity; repair"):
        vitfast.accelerate(source, "int8")
    images = sample_images(source)
    assert torch.equal(vitfast.accelerate(source)(images).isnan(), source(images).isnan())
