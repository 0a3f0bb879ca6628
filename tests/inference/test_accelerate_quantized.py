from __future__ import annotations

import copy

import pytest
import torch

import vitfast
from support.accelerable import accelerable, sample_images
from vitfast.ops.library import has_kernel

CONFIGS = {"fp16_32": vitfast.FP16_32Config(), "int8": vitfast.Int8Config()}


def quantized(kind: str, precision: str):
    model = accelerable(kind)
    vitfast.quantize_(model, CONFIGS[precision])
    return model


@pytest.mark.parametrize("precision", CONFIGS)
@pytest.mark.parametrize("kind", ["vitfast: vit", "vitfast: myrtle", "vitfast: distilled", "vitfast: convit"])
@torch.no_grad()
def test_a_quantized_model_runs_in_its_own_arithmetic(kind, precision):
    model = quantized(kind, precision)
    images = sample_images(model)
    fast = vitfast.accelerate(model, check=images)
    assert fast.report().precision == precision
    assert fast.report().fell_back == ()
    expected = model(images)
    error = (fast(images) - expected).norm() / expected.norm()
    # sums in another order may round an operand to the neighbouring number, which changes one term of many
    assert error < (2e-4 if precision == "fp16_32" else 2e-2)
    rounding = (expected - accelerable(kind)(images)).norm() / expected.norm()
    assert rounding > 1e-5, "quantization has no effect, so the test says nothing"
    assert fast.report().agreement.worst_error < (1e-4 if precision == "fp16_32" else 1e-2)


@pytest.mark.parametrize("kind", ["vitfast: vit", "timm: vit", "torchvision", "vitfast: convit"])
@torch.no_grad()
def test_fp16_32_is_bit_exact_with_the_same_gemm(kind, monkeypatch):
    """With torch's GEMMs on both sides only the order of roundings could differ, and it does not."""
    monkeypatch.setattr("vitfast.inference.accelerate.has_kernel", lambda *_: False)
    plain = accelerable(kind)
    model = copy.deepcopy(plain)
    vitfast.quantize_(model, vitfast.FP16_32Config())
    images = sample_images(model)
    fast = vitfast.accelerate(model, "fp16_32")
    after = vitfast.accelerate(plain, "fp16_32")
    assert torch.equal(fast(images), after(images)), "accelerate(…, 'fp16_32') is quantize_ with FP16_32Config()"
    # the head reads one token: the last block's GEMMs have other shapes, in which torch may sum in another order
    tokens = model.forward_features(images) if hasattr(model, "forward_features") else None
    if tokens is not None and kind != "timm: vit":
        torch.testing.assert_close(fast.forward_features(images), tokens, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(fast(images), model(images), rtol=2e-3, atol=2e-3)


def test_a_quantized_state_is_the_quantized_models():
    model = quantized("vitfast: vit", "fp16_32")
    state = vitfast.accelerate(model).state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())


def test_another_precision_than_the_models_is_rejected():
    with pytest.raises(vitfast.UserError, match="precision='bf16', but the model is quantized already, to fp16_32"):
        vitfast.accelerate(quantized("vitfast: vit", "fp16_32"), "bf16")


@pytest.mark.parametrize(
    "config",
    [
        vitfast.FP16_16Config(),
        vitfast.TF32Config(),
        vitfast.FloatConfig("fp8_e4m3fn"),
        vitfast.FP16_32Config(numerics="qtorch"),
        vitfast.FP16_32Config(semantics="legacy_convert"),
    ],
    ids=lambda config: type(config).__name__,
)
@torch.no_grad()
def test_formats_without_a_kernel_fall_back(config):
    model = accelerable("vitfast: vit")
    vitfast.quantize_(model, config)
    images = sample_images(model)
    with pytest.warns(UserWarning, match="which has no fast kernel"):
        fast = vitfast.accelerate(model)
    assert torch.equal(fast(images), model(images))


@torch.no_grad()
def test_layers_left_out_of_quantization_stay_in_float32():
    model = accelerable("vitfast: vit")
    vitfast.quantize_(model, vitfast.Int8Config(), overrides={"blocks.0.*": None, "head": None})
    images = sample_images(model)
    fast = vitfast.accelerate(model)
    assert fast.report().fell_back == ()
    precisions = {name: module.precision for name, module in fast.named_modules() if hasattr(module, "column_order")}
    assert precisions["body.model.blocks.0.qkv"] == "fp32"
    assert precisions["body.model.blocks.1.kv"] == "int8"
    assert precisions["body.model.readouts.0.layers.0"] == "fp32"
    torch.testing.assert_close(fast(images), model(images), rtol=2e-2, atol=2e-2)


def test_disabled_quantization_falls_back():
    model = quantized("vitfast: vit", "fp16_32")
    with vitfast.disable_fake_quantize(model), pytest.warns(UserWarning, match="switched to 'off'"):
        vitfast.accelerate(model)


def test_packed_kernels_say_whether_they_are_there():
    report = vitfast.accelerate(accelerable("vitfast: vit"), "bf16").report()
    assert ("torch's" in report.kernels) == (not has_kernel("packed", "cpu"))
