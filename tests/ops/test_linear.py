"""Specific to linear: rounding, saved tensors, and its use by mlp."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor

from support import plain
from support.accuracy import assert_same_bits
from support.operators import OPERATORS
from support.sample import Make, Sample
from vitfast import ops
from vitfast.formats import FloatFormat
from vitfast.ops.library import has_kernel

FORMATS = [FloatFormat.fp8_e4m3fn(), FloatFormat.qtorch(5, 10), FloatFormat.fp4_e2m1()]
LINEAR = next(operator for operator in OPERATORS if operator.name == "linear")


def _sample(name: str, dtype: torch.dtype = torch.float32) -> Sample:
    return next(sample for sample in LINEAR.samples(Make(dtype)) if sample.name == name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("name", ["vit_nano_fc1", "vit_nano_fc2", "vit_tiny_qkv"])
def test_a_rounded_result_is_the_result_rounded(name: str, format: FloatFormat, dtype: torch.dtype) -> None:
    sample = _sample(name, dtype)
    rounded = ops.linear(**sample.arguments, format=format)
    assert_same_bits(rounded, ops.quantize_float(ops.linear(**sample.arguments), format))


@pytest.mark.parametrize("name", ["tiny", "tiny_plain", "tiny_scale"])
def test_rounding_passes_gradients_straight_through(name: str) -> None:
    def gradients(**options: FloatFormat) -> tuple[Tensor, ...]:
        leaves = _sample(name).requires_grad()
        out = ops.linear(**leaves.arguments, **options)
        return torch.autograd.grad(out, list(leaves.tensors.values()), torch.ones_like(out))

    for rounded, unrounded in zip(gradients(format=FloatFormat.fp8_e4m3fn()), gradients(), strict=True):
        assert_same_bits(rounded, unrounded)


def test_under_autocast_a_float32_residual_is_added_and_rounded_in_float32() -> None:
    sample = _sample("vit_nano_fc2")
    residual, format = sample.arguments["residual"], FloatFormat.fp16()
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.linear(**sample.arguments, format=format)
        branch = ops.linear(**sample.replace(residual=None).arguments)
    assert branch.dtype == torch.bfloat16
    assert_same_bits(out, ops.quantize_float(residual + branch, format))


@pytest.mark.skipif(not has_kernel("linear", "cpu"), reason="pure PyTorch: no raw operator")
@pytest.mark.parametrize("name", ["tiny", "tiny_plain", "tiny_tanh", "tiny_scale", "tiny_residual"])
def test_the_sum_is_saved_only_where_a_gradient_reads_it(name: str) -> None:
    arguments = _sample(name).arguments
    addends = [arguments[part] for part in ("x", "weight", "bias", "activation", "scale", "residual")]
    for save_for_backward in (False, True):
        _, saved = torch.ops.vitfast.linear_forward.default(*addends, None, save_for_backward)
        is_read = arguments["activation"] != "none" or arguments["scale"] is not None
        assert (saved is not None) == (save_for_backward and is_read)


def test_only_the_residual_may_need_a_gradient() -> None:
    sample = _sample("tiny")
    residual = sample.arguments["residual"].requires_grad_()
    ops.linear(**sample.replace(residual=residual).arguments).sum().backward()
    assert torch.equal(residual.grad, torch.ones_like(residual))


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_mlp_is_two_of_them_without_its_own_kernel(approximate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mlp = next(operator for operator in OPERATORS if operator.name == "mlp")
    sample = next(one for one in mlp.samples(Make()) if one.name == "vit_nano").replace(approximate=approximate)
    calls = []

    def spy(*arguments: Tensor, **options: object) -> Tensor:
        calls.append(options)
        return ops.linear(*arguments, **options)  # type: ignore[arg-type]

    mlp_module = importlib.import_module("vitfast.ops.mlp")  # vitfast.ops.mlp is the function
    monkeypatch.setattr(mlp_module, "has_kernel", lambda *_: False)
    monkeypatch.setattr(mlp_module, "linear", spy)
    arguments = sample.arguments
    torch.testing.assert_close(ops.mlp(**arguments), plain.mlp(**arguments))
    assert [options.get("activation") for options in calls] == ["gelu_tanh" if approximate == "tanh" else "gelu", None]
