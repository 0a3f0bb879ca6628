"""Under autocast, GEMMs are computed in autocast's dtype; LayerNorm and rounding keep their inputs' dtype."""

from __future__ import annotations

import pytest
import torch

import vitfast
from support.accuracy import as_tuple, assert_same_bits, run
from support.operators import OPERATORS, Operator
from support.sample import Make, Sample
from vitfast import ops
from vitfast.layers import Block


def _without_float32(operator: Operator, sample: Sample, low: torch.dtype) -> Sample:
    """Without what autocast leaves in float32."""
    if operator.name in ("linear", "mlp"):  # mlp adds a float32 residual in float32, tested below
        return sample.replace(residual=None)
    if operator.name == "gated_positional_attention":  # its gate is used in float32: one that the type can hold
        return sample.replace(gate=sample.arguments["gate"].to(low).float())
    return sample


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_computes_in_the_documented_type(operator: Operator, low: torch.dtype) -> None:
    for sample in operator.samples(Make()):
        if sample.numel > 60_000:
            continue
        sample = _without_float32(operator, sample, low)
        expected_call = sample.to(low) if operator.computes_in_autocast else sample
        expected = as_tuple(operator.public(**expected_call.arguments))
        with torch.autocast("cpu", low):
            outputs = as_tuple(operator.public(**sample.arguments))
        for out, other in zip(outputs, expected, strict=True):
            assert_same_bits(out, other, str(sample))


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_gradients_have_the_types_of_their_arguments(operator: Operator) -> None:
    sample = operator.samples(Make())[0]
    with torch.autocast("cpu", torch.bfloat16):
        leaves = sample.requires_grad()
        outputs = as_tuple(operator.public(**leaves.arguments))
    gradients = torch.autograd.grad(sum(out.float().sum() for out in outputs), list(leaves.tensors.values()))
    assert {gradient.dtype for gradient in gradients} == {torch.float32}


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_float64_is_left_alone_and_disabled_autocast_does_nothing(operator: Operator) -> None:
    for dtype, enabled in ((torch.float64, True), (torch.float32, False)):
        sample = operator.samples(Make(dtype))[0]
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            outputs, _ = run(operator.public, sample)
        for out, expected in zip(outputs, run(operator.public, sample)[0], strict=True):
            assert_same_bits(out, expected)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_layer_norm_converts_its_result(low: torch.dtype) -> None:
    x, residual, weight, bias = torch.randn(5, 64).to(low), torch.randn(5, 64), torch.randn(64), torch.randn(64)
    assert_same_bits(ops.layer_norm(residual, weight, out_dtype=low), ops.layer_norm(residual, weight).to(low))
    summed, y = ops.add_layer_norm(x, residual, weight, bias, out_dtype=low)
    assert_same_bits(summed, x + residual)
    assert_same_bits(y, ops.layer_norm(summed, weight, bias).to(low))
    for wrong in (torch.int8, "bfloat16"):
        with pytest.raises(TypeError, match="out_dtype must be a floating-point dtype or None"):
            ops.layer_norm(x, out_dtype=wrong)


def test_a_block_computes_the_same_if_its_layer_norms_convert_their_results() -> None:
    block, x = Block(64, 2, 128), torch.randn(2, 9, 64, requires_grad=True)
    norms, results = (block.norm1, block.norm2), []
    for feeds_linear in (True, False):
        dtypes = []
        for norm in norms:
            norm.feeds_linear = feeds_linear
        handle = block.norm1.register_forward_hook(lambda module, args, y, dtypes=dtypes: dtypes.append(y.dtype))
        with torch.autocast("cpu", torch.bfloat16):
            out = block(x)
        handle.remove()
        assert dtypes == [torch.bfloat16 if feeds_linear else torch.float32]
        assert out.dtype == torch.float32
        results.append([out, *torch.autograd.grad(out.square().sum(), [x, *block.parameters()])])
    for one, other in zip(*results, strict=True):
        assert_same_bits(one, other)
    vitfast.quantize_(block, vitfast.FP16_32Config(), overrides={"norm*": None})
    assert not block.norm1.feeds_linear, "a quantized layer would read a rounded operand"


def test_mlp_adds_a_float32_residual_in_float32() -> None:
    sample = next(s for s in _samples("mlp") if s.name == "vit_nano")
    residual = sample.arguments["residual"]
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.mlp(**sample.arguments)
        branch = ops.mlp(**sample.replace(residual=None).arguments)
    assert branch.dtype == torch.bfloat16
    assert_same_bits(out, residual + branch)


def test_autocast_takes_weights_and_inputs_of_different_types() -> None:
    sample = next(s for s in _samples("mlp") if s.name == "vit_nano")
    low_x = sample.replace(x=sample.arguments["x"].bfloat16(), residual=None)
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.mlp(**low_x.arguments)
    assert_same_bits(out, ops.mlp(**low_x.to(torch.bfloat16).arguments))


def _samples(name: str) -> list[Sample]:
    return next(operator for operator in OPERATORS if operator.name == name).samples(Make())
