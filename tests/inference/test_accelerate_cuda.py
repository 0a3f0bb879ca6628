"""The CUDA backend without CUDA: the same modules and recordings, on the CPU."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import vitfast
from support.accelerable import BUILDERS, accelerable, distance, sample_images, tensors_of
from support.cast_model import cast_model, fp8_on_cpu
from support.exit_models import EXIT_MODELS, exit_model, random_images
from support.operator_calls import OperatorCalls
from support.slow import slow
from vitfast.inference.accelerate import _precision
from vitfast.inference.cuda.cast_layers import Fp8Linear, Int8Linear
from vitfast.inference.cuda.cuda_backend import called_kernels
from vitfast.inference.modules.linear import InferenceLinear
from vitfast.inference.normalization import Normalization
from vitfast.ops.library import CPU_KERNELS, has_kernel

# the kinds whose parts differ from each other; the others differ from them in how they are read only
ALL_PRECISIONS = (
    "vitfast: vit",
    "vitfast: convit",
    "vitfast: t2t",
    "vitfast: dvt over deit",
    "vitfast: dvt, convolutions",
    "timm: map pooling",
    "timm: LayerScale, registers",
    "timm: QK-norm",
    "transformers: Swinv2ForImageClassification",  # windows with padding, whose keys are zeros
)


# together these have every configuration of every module; test_accelerate.py lowers all models
COVERING = (
    *("vitfast: DINOv3, SwiGLU", "vitfast: convit, vissl", "vitfast: distilled", "vitfast: dvt over t2t"),
    *("vitfast: dvt without reuse", "vitfast: t2t, transformer", "timm: AIMv2: RMSNorm", "timm: SAM", "timm: Swin"),
    *("timm: Swin V2", "timm: no bias", "timm: parallel blocks", "timm: relative positions, table, post-norm"),
    *("torchvision: hidden head", "open_clip: all tokens", "open_clip: mean, tokens", "open_clip: quick GELU"),
    *("transformers: BeitBackbone", "transformers: CLIPVisionModelWithProjection", "transformers: SwinModel"),
    *("transformers: DINOv3ViTBackbone", "transformers: Data2VecVisionForImageClassification"),
    *("transformers: DeiTForImageClassification", "transformers: Dinov2ForImageClassification"),
    *("transformers: Dinov2WithRegistersForImageClassification", "transformers: IJepaForImageClassification"),
    *("transformers: InternVLVisionModel", "transformers: SiglipVisionModel", "transformers: ViTModel"),
    *("transformers: SwinForImageClassification", "transformers: Swinv2ForImageClassification"),
    *("transformers: Swinv2Backbone", "transformers: ViTForImageClassification"),
)


@pytest.mark.parametrize(
    "kind",
    [
        *(kind for kind in BUILDERS if kind in (*COVERING, *ALL_PRECISIONS)),
        *slow(kind for kind in BUILDERS if kind not in (*COVERING, *ALL_PRECISIONS)),
    ],
)
@torch.no_grad()
def test_every_model_runs_in_the_precisions_of_a_gpu(kind):
    source = accelerable(kind)
    images = sample_images(source)
    state = {key: tensor.clone() for key, tensor in source.state_dict().items()}
    reference = copy.deepcopy(source).double()(images.double())
    for precision in ("fp32", "bf16", "fp16", "fp16_32") if kind in ALL_PRECISIONS else ("fp32", "bf16"):
        fast = cast_model(source, precision, largest=2, check=images)
        assert fast.report().fell_back == ()
        result = fast(images)
        assert type(result) is type(source(images))
        assert [one.shape for one in tensors_of(result)] == [one.shape for one in tensors_of(reference)]
        assert all(one.dtype == torch.float32 for one in tensors_of(result))
        if precision == "bf16":
            half = copy.deepcopy(source).bfloat16()(images.bfloat16())
            assert distance(result, reference) < 2 * distance(half, reference) + 1e-3
            assert distance(result, reference) > 1e-3, "it did not run in bf16"
        else:
            assert distance(result, reference) < {"fp32": 1e-5, "fp16": 3e-3, "fp16_32": 3e-3}[precision]
            assert (distance(result, reference) > 1e-4) == (precision != "fp32"), precision
        assert fast.report().agreement.worst_error < {"fp32": 1e-5, "bf16": 2e-2}.get(precision, 3e-3)
        found = fast.state_dict()
        assert list(found) == list(state)
        changed = [key for key, tensor in state.items() if not torch.equal(found[key], tensor)]
        assert bool(changed) == (precision != "fp32"), changed


@pytest.mark.skipif(not has_kernel("linear", "cpu"), reason="pure PyTorch: no raw operator")
@pytest.mark.parametrize("kind", [*ALL_PRECISIONS, "vitfast: t2t, transformer"])
@torch.no_grad()
def test_the_report_names_the_kernels_that_are_called(kind):
    source = accelerable(kind)
    fast = cast_model(source, "bf16")
    with OperatorCalls() as calls:
        fast(sample_images(source))
    # the longest name: gated_positional_attention's is no other attention
    called = {max((kernel for kernel in CPU_KERNELS if kernel in name), key=len) for name in calls.names}
    assert called_kernels(fast.body, "cpu") == sorted(called)
    assert called_kernels(cast_model(source, "fp32").body, "cpu") == sorted(called - {"linear"})


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("batch", [0, 1, 3, 4, 5, 9])
@torch.no_grad()
def test_any_batch_size_runs_and_images_are_independent(batch, precision):
    source = accelerable("vitfast: vit")
    images = sample_images(source, batch)
    fast = cast_model(source, precision)
    expected = cast_model(source, precision, largest=0)(images)
    for _ in range(2):
        torch.testing.assert_close(fast(images), expected, rtol=1e-6, atol=1e-6)
    if batch == 9:
        broken = images.clone()
        broken[2] = torch.nan
        result = fast(broken)
        assert result[2].isnan().all()
        torch.testing.assert_close(fast(images[:3]), expected[:3], rtol=1e-6, atol=1e-6)
        others = [index for index in range(9) if index != 2]
        torch.testing.assert_close(result[others], expected[others], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", EXIT_MODELS)
def test_images_use_the_same_exit_without_graphs(kind, precision):
    model = exit_model(kind)
    images = random_images(model, 11)
    fast = cast_model(model, precision)
    plain = cast_model(model, precision, largest=0)
    with torch.no_grad():
        confidence = torch.stack([logits.softmax(1).amax(1) for logits in plain(images)])
    thresholds = confidence.sort(dim=1).values[:, 5:7].mean(dim=1).tolist()  # between two images
    logits, exits = vitfast.EarlyExit(fast, thresholds)(images)
    expected_logits, expected_exits = vitfast.EarlyExit(plain, thresholds)(images)
    assert torch.equal(exits, expected_exits)
    assert len(exits.unique()) > 1, "all images leave at one exit, so the test says little"
    tolerance = 1e-5 if precision == "fp32" else 2e-2
    torch.testing.assert_close(logits, expected_logits, rtol=tolerance, atol=tolerance)
    recorded = {key[0] for key in fast.body.graphs._recordings}
    assert recorded == {f"exit {index}" for index in range(1 + int(exits.max()))}


@torch.no_grad()
def test_exits_one_by_one_are_all_exits_at_once():
    model = exit_model("deit")
    images = random_images(model, 5)
    fast = cast_model(model)
    state = fast.start(images)
    for expected in model(images):
        logits, state = fast.advance(state)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="this state is after the last one"):
        fast.advance(state)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "fp16_32"])
@pytest.mark.parametrize("kind", ["timm: vit", "vitfast: myrtle", "vitfast: dvt over deit"])
@torch.no_grad()
def test_images_as_they_are_read_are_normalized_within(kind, precision):
    model = accelerable(kind)
    size = sample_images(model).shape[-1]
    pixels = torch.randint(256, (3, 3, size, size), dtype=torch.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    normalized = (pixels / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    fast = cast_model(model, precision, normalization=Normalization(mean, std), check=pixels)
    assert fast.report().agreement.cosine > 0.99
    expected = tensors_of(cast_model(model, precision)(normalized))
    for images in (pixels, pixels / 255):
        for result, wanted in zip(tensors_of(fast(images)), expected, strict=True):
            assert (result - wanted).norm() < {"fp32": 1e-5, "bf16": 3e-2}.get(precision, 5e-3) * wanted.norm()


def test_a_part_with_its_own_code_is_not_recorded():
    model = accelerable("timm: vit")
    model.blocks[0].register_forward_hook(lambda *_: None)
    images = sample_images(model)
    with pytest.warns(UserWarning, match="1 of 4 parts"):
        fast = cast_model(model, "bf16")
    assert fast.body.graphs is None
    assert "CUDA graphs" not in fast.report().kernels
    with torch.no_grad():
        expected = model(images)
        assert (fast(images) - expected).norm() < 2e-2 * expected.norm()


def test_foreign_models_run_their_own_forward_around_cast_blocks():
    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = accelerable("timm: vit")

        def forward(self, x):
            return self.inner(x) * 2

    model = Wrapped().eval()
    images = sample_images(model.inner)
    with pytest.warns(UserWarning, match="fall back to the source's forward"):
        fast = cast_model(model, "bf16", check=images)
    assert "CUDA graphs" not in fast.report().kernels
    with torch.no_grad():
        expected = model(images)
        result = fast(images)
    assert 1e-4 < (result - expected).norm() / expected.norm() < 2e-2


def test_weights_are_cast_once():
    source = accelerable("vitfast: vit")
    for precision, bytes_a_weight in (("fp32", 4), ("bf16", 2), ("fp16", 2), ("fp16_32", 2)):
        fast = cast_model(source, precision)
        linears = [module for module in fast.modules() if isinstance(module, InferenceLinear)]
        assert linears
        assert all(linear.weight.element_size() == bytes_a_weight for linear in linears)
        held = {tensor.untyped_storage().data_ptr(): tensor.nbytes for tensor in fast.buffers()}
        held |= {t.untyped_storage().data_ptr(): t.nbytes for t in fast._state.values() if t is not None}
        matrices = sum(p.numel() for p in source.parameters() if p.dim() in (2, 4))
        others = sum(p.numel() for p in source.parameters()) - matrices
        assert sum(held.values()) <= bytes_a_weight * matrices + 2 * 4 * others


def test_the_contract_is_the_cpus():
    source = accelerable("vitfast: vit")
    fast = cast_model(source, "bf16")
    images = sample_images(source)
    with pytest.raises(vitfast.UserError, match="for inference only"):
        fast.train()
    with pytest.raises(vitfast.UserError, match="stays in its type"):
        fast.half()
    with pytest.raises(TypeError, match="must be a tensor"):
        fast("photo.jpg")
    with pytest.raises(ValueError, match="must have shape"):
        fast(images[:, :1])
    expected = fast(images)
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert torch.equal(other(images), expected)
        assert len(other.body.graphs._recordings) == 1
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(images), expected)
    assert fast.forward_features(images).dtype == torch.float32
    torch.compiler.reset()
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), expected, rtol=1e-2, atol=1e-2)


def test_threads_share_a_model():
    source = accelerable("vitfast: vit")
    fast = cast_model(source)
    batches = [sample_images(source, batch, seed=batch) for batch in (1, 2, 3, 6)] * 4
    expected = [cast_model(source, largest=0)(images) for images in batches]
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(fast, batches), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_hugging_face_models_keep_their_outputs():
    fast = cast_model(accelerable("transformers: ViTModel"), "bf16")
    result = fast(pixel_values=torch.randn(3, 3, 32, 32))
    assert type(result).__name__ == "BaseModelOutputWithPooling"
    assert result.last_hidden_state.shape == (3, 5, 32)


def test_precisions_that_a_gpu_does_not_support_are_rejected(monkeypatch):
    model, gpu = accelerable("vitfast: vit"), torch.device("cuda")
    with pytest.raises(vitfast.UserError, match="precision='int4' is not supported on cuda; allowed: fp32, bf16"):
        _precision(model, "int4", gpu)
    with pytest.raises(vitfast.UserError, match="precision='fp16' is not supported on cpu"):
        _precision(model, "fp16", torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert _precision(model, "fp8", gpu) == "fp8"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(vitfast.UserError, match=r"precision='fp8' needs .* 8\.9 or newer, cuda has 8\.6"):
        _precision(model, "fp8", gpu)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16_16", 3e-3), ("int8", 5e-2), ("fp8", 0.2)])
@pytest.mark.parametrize("kind", ["vitfast: t2t", "timm: LayerScale, registers"])
@fp8_on_cpu()
@torch.no_grad()
def test_low_precisions_of_a_gpu(kind, precision, tolerance):
    source = accelerable(kind)
    images = sample_images(source)
    exact = source(images)
    fast = cast_model(source, precision, largest=2)
    assert fast.report().fell_back == ()
    assert fast(images).dtype == torch.float32
    assert 1e-4 < distance(fast(images), exact) < tolerance
    found = fast.state_dict()
    assert list(found) == list(source.state_dict())
    # it is the source's, rounded: it builds the same model
    source.load_state_dict(found)
    assert distance(cast_model(source, precision, largest=2)(images), fast(images)) < tolerance / 5


@pytest.mark.parametrize("make", [Int8Linear, Fp8Linear])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 16, 16), (40, 20, 10), (17, 64, 7)])
@fp8_on_cpu()
@torch.no_grad()
def test_layers_in_8_bits(make, rows, inputs, outputs):
    precision, bits = ("int8", 7) if make is Int8Linear else ("fp8", 4)
    weight, bias = torch.randn(outputs, inputs), torch.randn(outputs)
    x = torch.randn(2, rows, inputs) * torch.logspace(-3, 3, rows)[:, None]
    x[1, 0] = 0
    layer = make(weight, bias, precision, ())
    out = layer(x)
    rounded = layer._restored()
    assert (rounded - weight).abs().amax() <= 2.0**-bits * weight.abs().amax()
    # 8-bit operands; fp8's result is rounded to bf16 before the bias
    exact = x.double() @ rounded.double().t()
    relative = 2.0**-bits + (2.0**-8 if make is Fp8Linear else 0)
    allowed = relative * x.abs().amax(-1, keepdim=True) * weight.abs().sum(1)
    assert ((out - bias - exact).abs() <= allowed + 1e-5).all()
    assert torch.equal(out[1, 0], bias)
    assert torch.equal(make(weight, None, precision, ())(x[:, :0]), out[:, :0])
    with pytest.raises(vitfast.UserError, match=f"{precision} holds no NaN"):
        make(weight / 0, bias, precision, ())


@pytest.mark.parametrize("config", [vitfast.FP16_32Config(), vitfast.Int8Config()], ids=str)
def test_quantized_models_keep_their_arithmetic(config):
    model = accelerable("vitfast: vit")
    vitfast.quantize_(model, config)
    images = sample_images(model)
    fast = cast_model(model, "fp32")  # what accelerate passes for a quantized model
    with torch.no_grad():
        torch.testing.assert_close(fast(images), model(images), rtol=1e-5, atol=1e-5)
