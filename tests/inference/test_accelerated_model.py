from __future__ import annotations

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image

import vitfast
from support.accelerable import accelerable, sample_images, tensors_of
from support.resident import STATM, resident_mib
from support.slow import slow
from support.subprocesses import run_python

KINDS = [
    "vitfast: vit",
    "vitfast: convit",
    "vitfast: t2t",
    "timm: LayerScale, registers",
    "torchvision",
    "transformers: ViTForImageClassification",
]
PRECISIONS = ["fp32", "bf16", "fp16_32", "int8"]


@pytest.fixture(scope="module")
def source():
    return accelerable("timm: vit")


@pytest.fixture(scope="module")
def fast(source):
    return vitfast.accelerate(source, "bf16")


def test_training_is_refused(fast):
    with pytest.raises(vitfast.UserError, match="for inference only; train the source model"):
        fast.train()
    assert fast.eval() is fast
    assert not fast.training


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ("photo.jpg", TypeError, "must be a tensor .* got str"),
        (None, TypeError, "must be a tensor .* got NoneType"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), TypeError, "got torch.uint8; convert and normalize"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.float64), TypeError, r"got torch.float64; give images.float\(\)"),
        (torch.zeros(3, 32, 32), ValueError, r"must have shape \[B, 3, 32, 32\], got \[3, 32, 32\]; .* images\[None\]"),
        (torch.zeros(1, 3, 48, 32), ValueError, r"got \[1, 3, 48, 32\]; resize them"),
        (torch.zeros(1, 1, 32, 32), ValueError, r"got \[1, 1, 32, 32\]; the model takes 3 channels"),
        (torch.zeros(1, 32, 32, 3), ValueError, r"got \[1, 32, 32, 3\]; .* give images.permute\(0, 3, 1, 2\)"),
        (torch.zeros(1, 3, 32, 32, device="meta"), ValueError, "are on meta"),
    ],
)
def test_wrong_images_are_rejected(fast, images, error, message):
    with pytest.raises(error, match=message):
        fast(images)


IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ["timm: vit", "vitfast: myrtle", "vitfast: dvt over deit", "vitfast: t2t"])
@torch.no_grad()
def test_images_as_they_are_read_are_normalized_within(kind, precision):
    model = accelerable(kind)
    size = sample_images(model).shape[-1]
    pixels = torch.randint(256, (3, 3, size, size), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET.values())
    normalized = (pixels / 255 - mean) / std
    fast = vitfast.accelerate(model, precision, check=pixels, **IMAGENET)
    assert fast.report().agreement.cosine > 0.99
    expected = tensors_of(vitfast.accelerate(model, precision)(normalized))
    tolerance = {"fp32": 1e-5, "bf16": 2e-2, "fp16_32": 2e-3, "int8": 4e-2}[precision]
    for images in (pixels, pixels / 255):
        for result, wanted in zip(tensors_of(fast(images)), expected, strict=True):
            assert (result - wanted).norm() < tolerance * wanted.norm()
    state = model.state_dict()
    assert list(fast.state_dict()) == list(state)
    if precision == "fp32":
        assert all(torch.equal(tensor, state[key]) for key, tensor in fast.state_dict().items())


def test_wrong_normalizations_are_rejected(source):
    for options, message in (
        ({"mean": (0.5,) * 3}, "must both have a number for each channel"),
        ({"mean": (0.5,) * 3, "std": (1.0, 1.0, 0.0)}, "std above 0"),
        ({"mean": (0.5,), "std": (0.5,)}, "has 1 numbers, images have 3 channels"),
        ({"mean": 0.5, "std": 0.5}, r"mean=0.5 must have a number for each channel, as in mean=\(0.5, 0.5, 0.5\)"),
        ({"mean": (0.5,) * 3, "std": 0.5}, "std=0.5 must have a number for each channel"),
        ({"mean": [123.675, 116.28, 103.53], "std": (1.0,) * 3}, r"from 0 to 1; .* give mean=\(0.485, 0.456, 0.406\)"),
        ({"mean": (0.5,) * 3, "std": [58.4, 57.1, 57.4]}, r"std=\(0.229, 0.224, 0.225\)"),
    ):
        with pytest.raises(vitfast.UserError, match=message):
            vitfast.accelerate(source, **options)
    with pytest.raises(TypeError, match=r"must be uint8 \(0 to 255\) or floating point \(0 to 1\), got torch.int64"):
        vitfast.accelerate(source, **IMAGENET)(torch.zeros(1, 3, 32, 32, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"give images.float\(\)"):
        vitfast.accelerate(source, **IMAGENET)(torch.zeros(1, 3, 32, 32, dtype=torch.float64))


def test_options_of_the_source_are_refused(fast):
    images = torch.zeros(1, 3, 32, 32)
    with pytest.raises(vitfast.UserError, match="was given attn_mask; run the source model"):
        fast(images, attn_mask=torch.ones(5, 5))
    assert fast(images, is_causal=False).shape == (1, 7)
    assert fast(x=images).shape == (1, 7)


def test_half_precision_images_are_taken(fast):
    images = torch.randn(2, 3, 32, 32).bfloat16()
    assert torch.equal(fast(images), fast(images.float()))


def test_weights_and_moves_are_refused(fast, source):
    with pytest.raises(vitfast.UserError, match="load them into the source model"):
        fast.load_state_dict(source.state_dict())
    for move in (lambda: fast.half(), lambda: fast.to(torch.bfloat16), lambda: fast.to("meta"), lambda: fast.double()):
        with pytest.raises(vitfast.UserError, match="stays in its type and on its device"):
            move()
    assert fast.to("cpu").float() is fast


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_pickles_compute_the_same(kind, precision):
    model = accelerable(kind)
    fast = vitfast.accelerate(model, precision)
    images = sample_images(model)
    expected = tensors_of(fast(images))
    copied = copy.deepcopy(fast)
    pickled = pickle.loads(pickle.dumps(fast))
    saved = io.BytesIO()
    torch.save(fast, saved)
    saved.seek(0)
    for other in (copied, pickled, torch.load(saved, weights_only=False)):
        assert all(torch.equal(*pair) for pair in zip(tensors_of(other(images)), expected, strict=True))
        assert list(other.state_dict()) == list(model.state_dict())
    own = {tensor.data_ptr() for tensor in fast.buffers() if tensor.numel()}
    assert not own & {tensor.data_ptr() for tensor in copied.buffers()}
    size = sum(tensor.nbytes for tensor in fast.buffers())
    assert len(pickle.dumps(fast)) < 1.5 * size + 60_000


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        *(("vitfast: vit", precision) for precision in PRECISIONS),
        ("vitfast: convit", "bf16"),
        ("timm: LayerScale, registers", "bf16"),
        *slow([("transformers: ViTForImageClassification", "bf16"), ("vitfast: distilled", "int8")]),
        *slow([("vitfast: t2t", "bf16"), ("torchvision", "bf16"), ("vitfast: dvt over deit", "int8")]),
    ],
)
def test_it_compiles_as_one_graph_and_exports(kind, precision):
    model = accelerable(kind)
    fast = vitfast.accelerate(model, precision)
    images = sample_images(model)
    expected = tensors_of(fast(images))
    torch.compiler.reset()
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    program = torch.export.export(fast, (images,), dynamic_shapes=None)
    for result in (compiled(images), program.module()(images)):
        torch.testing.assert_close(tensors_of(result), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_compiles_to_native_code(precision):
    model = accelerable("vitfast: vit")
    fast = vitfast.accelerate(model, precision)
    torch.compiler.reset()
    compiled = torch.compile(fast, fullgraph=True)
    for batch in (3, 1, 8):  # another batch compiles with any number of images
        images = sample_images(model, batch)
        torch.testing.assert_close(compiled(images), fast(images), rtol=1e-4, atol=1e-5)


def test_the_number_of_threads_changes_no_bit(source):
    images = sample_images(source)
    before = torch.get_num_threads()
    try:
        for precision in PRECISIONS:
            fast = vitfast.accelerate(source, precision)
            torch.set_num_threads(1)
            one = fast(images)
            torch.set_num_threads(2)
            assert torch.equal(fast(images), one), precision
    finally:
        torch.set_num_threads(before)


THREADS_OF_A_FORWARD = """
import os
import torch
import vitfast
from support.accelerable import accelerable, sample_images

def threads():
    return len(os.listdir("/proc/self/task"))

torch.set_num_threads(1)
model = accelerable("vitfast: vit")
images = sample_images(model, 32)
models = [vitfast.accelerate(model, precision) for precision in ("fp32", "int8")]
for fast in models:
    fast(images)
alone = threads()
for index, count in enumerate((2, 3, 5, 6)):
    torch.set_num_threads(count)
    for fast in (models[index % 2], models[1 - index % 2]):  # each is the first to need more threads
        fast(images)
        print(threads() - alone)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc to count threads")
def test_the_number_of_threads_is_obeyed():
    """A pool starts its threads when they are first needed: after one thread's work there are none, then as many."""
    finished = run_python("-c", THREADS_OF_A_FORWARD, OMP_NUM_THREADS="8")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split() == ["1", "1", "2", "2", "4", "4", "5", "5"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_two_threads_at_once_do_not_disturb_each_other(precision):
    models = [accelerable("vitfast: vit"), accelerable("timm: map pooling")]
    fast = [vitfast.accelerate(model, precision) for model in models]
    images = sample_images(models[0])
    expected = [one(images) for one in fast]
    with ThreadPoolExecutor(4) as pool:
        results = [(index % 2, pool.submit(fast[index % 2], images)) for index in range(24)]
        for which, result in results:
            assert torch.equal(result.result(), expected[which])


def test_autocast_changes_nothing(fast, source):
    images = sample_images(source)
    expected = fast(images)
    with torch.autocast("cpu", torch.bfloat16):
        result = fast(images)
    assert torch.equal(result, expected)


def test_gradients_end_at_the_images(fast):
    images = torch.randn(1, 3, 32, 32, requires_grad=True)
    assert not fast(images).requires_grad


def test_a_model_within_a_model_gives_its_state(fast, source):
    outer = torch.nn.Sequential(fast, torch.nn.Linear(7, 2))
    assert list(outer.state_dict())[:-2] == [f"0.{key}" for key in source.state_dict()]


def test_a_compiled_source_is_unwrapped(source):
    images = sample_images(source)
    fast = vitfast.accelerate(torch.compile(source), "fp32")
    assert torch.equal(fast(images), vitfast.accelerate(source, "fp32")(images))


def test_an_accelerated_model_is_not_accelerated_again(fast):
    with pytest.raises(vitfast.UserError, match="accelerated already: VisionTransformer, bf16, on cpu; use it"):
        vitfast.accelerate(fast, "fp32")


def test_the_report_names_the_kernels_of_the_machine_that_runs_the_model(fast, monkeypatch):
    pickled = pickle.dumps(fast)
    elsewhere = {"cpu": {"instruction_set": "another"}}
    monkeypatch.setattr("vitfast.inference.cpu.cpu_backend.build_info", lambda: elsewhere)
    assert pickle.loads(pickled).report().kernels == "another"


def test_the_number_of_images_is_dynamic_in_an_export(fast):
    for shapes in (({0: torch.export.Dim("batch")},), {"images": {0: torch.export.Dim("batch")}}):
        program = torch.export.export(fast, (torch.randn(2, 3, 32, 32),), dynamic_shapes=shapes)
    images = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(program.module()(images), fast(images))


def test_any_process_that_imports_vitfast_loads_an_export(fast, tmp_path):
    images = torch.randn(2, 3, 32, 32)
    torch.export.save(torch.export.export(fast, (images,)), tmp_path / "fast.pt2")
    torch.save((images, fast(images)), tmp_path / "sample.pt")
    program = (
        "import torch, vitfast\n"
        f"images, expected = torch.load({str(tmp_path / 'sample.pt')!r})\n"
        f"result = torch.export.load({str(tmp_path / 'fast.pt2')!r}).module()(images)\n"
        "torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)\n"
    )
    result = run_python("-c", program)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_aotinductor(source, precision, tmp_path):
    fast = vitfast.accelerate(source, precision)
    program = torch.export.export(fast, (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "fast.pt2"))
    images = torch.randn(5, 3, 32, 32)
    result = torch._inductor.aoti_load_package(package)(images)
    torch.testing.assert_close(result, fast(images), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "dynamo"),
    [
        ("vitfast: vit", False),
        *(
            pytest.param(f"vitfast: {kind}", True, marks=pytest.mark.slow)
            for kind in ("vit", "convit", "t2t", "dvt over deit")
        ),
    ],
)
def test_onnx_takes_the_source(kind, dynamo, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, path = accelerable(kind), str(tmp_path / "model.onnx")
    images = sample_images(model, 2)
    torch.onnx.export(model, (images,), path, dynamo=dynamo, verbose=False)
    session = onnxruntime.InferenceSession(path)
    results = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    for result, expected in zip(results, tensors_of(model(images)), strict=True):
        torch.testing.assert_close(torch.from_numpy(result), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(Exception, match=r"export the model that was accelerated|torch\.export") as error:
        torch.onnx.export(vitfast.accelerate(model), (images,), path, dynamo=dynamo, verbose=False)
    assert "vitfast.packed" not in str(error.value)


def test_what_libraries_read_of_their_models_is_that_of_the_source(source, fast):
    import timm

    data_config = timm.data.resolve_model_data_config
    own = vitfast.create_model("vit_tiny_patch16_224", depth=1, img_size=32, num_classes=5)
    for of, copied in ((source, fast), (own, pickle.loads(pickle.dumps(vitfast.accelerate(own))))):
        for name in ("pretrained_cfg", "default_cfg", "num_classes", "num_features"):
            assert getattr(copied, name) == getattr(of, name)
        assert data_config(copied) == data_config(of)
        assert (copied.dtype, copied.device) == (torch.float32, torch.device("cpu"))
    assert data_config(own)["mean"] == (0.5, 0.5, 0.5)
    assert data_config(own)["input_size"] == (3, 32, 32)
    normalizing = vitfast.accelerate(own, **IMAGENET)
    assert (data_config(normalizing)["mean"], data_config(normalizing)["std"]) == ((0.0,) * 3, (1.0,) * 3)
    with pytest.raises(AttributeError):
        fast.config  # noqa: B018
    assert not hasattr(vitfast.accelerate(accelerable("torchvision")), "pretrained_cfg")


def test_a_pipeline_runs_an_accelerated_model():
    from transformers import ViTImageProcessor, pipeline

    model = accelerable("transformers: ViTForImageClassification")
    side = model.config.image_size
    processor = ViTImageProcessor(size={"height": side, "width": side})
    photo = Image.new("RGB", (40, 30), "orange")
    results = [
        pipeline("image-classification", model=one, image_processor=processor)(photo)
        for one in (model, vitfast.accelerate(model))
    ]
    assert [one["label"] for one in results[0]] == [one["label"] for one in results[1]]
    assert results[0][0]["score"] == pytest.approx(results[1][0]["score"], rel=1e-4)


def test_hugging_face_models_keep_their_calls_and_outputs():
    model = accelerable("transformers: ViTForImageClassification")
    fast = vitfast.accelerate(model)
    images = sample_images(model)
    assert fast.config is not None
    result = fast(pixel_values=images)
    assert type(result).__name__ == "ImageClassifierOutput"
    assert torch.equal(result.logits, fast(images)["logits"])
    assert isinstance(fast(images, return_dict=False), tuple)
    for option in ({"output_attentions": True}, {"labels": torch.zeros(3).long()}):
        with pytest.raises(vitfast.UserError, match=next(iter(option))):
            fast(images, **option)
    base = vitfast.accelerate(accelerable("transformers: ViTModel"))(images)
    assert type(base).__name__ == "BaseModelOutputWithPooling"
    assert base.last_hidden_state.shape == (3, 5, 32)
    assert base.pooler_output.shape == (3, 32)


def test_tied_weights_are_packed_and_named_twice():
    model = accelerable("timm: vit")
    model.blocks[1].attn.qkv.weight = model.blocks[0].attn.qkv.weight
    fast = vitfast.accelerate(model, "fp32")
    images = sample_images(model)
    with torch.no_grad():
        torch.testing.assert_close(fast(images), model(images), rtol=1e-4, atol=1e-5)
    state = fast.state_dict()
    assert torch.equal(state["blocks.1.attn.qkv.weight"], model.blocks[0].attn.qkv.weight)


@pytest.mark.slow
@pytest.mark.skipif(not STATM.exists(), reason="needs Linux's /proc to read the resident set")
def test_memory_does_not_grow(source):
    """Ten thousand forwards in each precision, of one and of several images."""
    models = [vitfast.accelerate(source, precision) for precision in PRECISIONS]
    batches = [sample_images(source, 1), sample_images(source, 3)]
    for _ in range(500):
        for fast in models:
            for images in batches:
                fast(images)
    before = resident_mib()
    for _ in range(5_000):
        for fast in models:
            for images in batches:
                fast(images)
    growth = resident_mib() - before
    assert growth < 2.0, f"{growth:.1f} MiB more after 40,000 forwards"


def test_outputs_are_new_tensors(fast, source):
    images = sample_images(source)
    first = tensors_of(fast(images))[0]
    kept = first.clone()
    fast(images * 2)
    assert torch.equal(first, kept)
