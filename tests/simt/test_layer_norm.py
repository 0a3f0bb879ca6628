"""The CUDA kernels of LayerNorm, run on the host, against float64; with roundings, against the CPU's operators."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from support import plain, simt
from support.accuracy import assert_same_bits
from vitfast.formats import FloatFormat
from vitfast.ops import reference
from vitfast.ops.rounding import float_rounding
from vitfast.ops.tolerance import BACKWARD_FACTOR, FORWARD_FACTOR, assert_as_accurate

EPS = 1e-6
# a pack a lane to the most that there can be, whole and part warps; 200: a multiple of 8
WIDTHS = (8, 64, 192, 200, 384, 768, 1024, 1280)
# of the residual stream, the branch and the parameters
TYPES = {
    "float32": (torch.float32, torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16, torch.bfloat16),
    "float16": (torch.float16, torch.float16, torch.float16),
    "float32 parameters": (torch.bfloat16, torch.bfloat16, torch.float32),
    "float32 stream": (torch.float32, torch.bfloat16, torch.float32),
}

CHECKED_TYPES = ("float32", "float32 parameters", "float32 stream")  # elements of four and of two bytes, and of both


class Case:
    """One LayerNorm and its gradients.

    Attributes:
        inputs: x, residual, weight, bias, grad_y and grad_summed; None where there is none.
        roundings: round_sum, round_operand and round_result as raw operators take them, where there are any.
    """

    def __init__(self, rows: int, channels: int, types: str, *, residual: bool, parameters: bool = True) -> None:
        stream, branch, parameter_dtype = TYPES[types]
        self.rows, self.channels = rows, channels

        def normal(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.randn(shape).to(dtype)

        self.inputs: dict[str, Tensor | None] = {
            "x": normal(branch if residual else stream, rows, channels) + 0.5,
            "residual": normal(stream, rows, channels) if residual else None,
            "weight": normal(parameter_dtype, channels) if parameters else None,
            "bias": normal(parameter_dtype, channels) if parameters else None,
            "grad_y": normal(branch, rows, channels),
            "grad_summed": normal(stream, rows, channels) if residual else None,
        }
        self.stream, self.dtype, self.parameter_dtype = stream, branch, parameter_dtype
        self.roundings: dict[str, list[int]] = {}

    def run(self, direction: str, names: tuple[str, ...], *, variant: str, **extra: Tensor):
        """The kernel's results."""
        inputs = {name: self.inputs[name] for name in names if self.inputs[name] is not None}
        shape = (self.rows, self.channels)
        options = {
            "direction": direction,
            "stream_type": str(self.stream).removeprefix("torch."),
            "parameter_type": str(self.parameter_dtype).removeprefix("torch."),
            "rows": self.rows,
            "channels": self.channels,
            "eps": EPS,
            "rows_per_chunk": 5,
            "has_bias": int(self.inputs["bias"] is not None),
        }
        statistics = ((self.rows,), torch.float32)
        if direction == "forward":
            outputs = {"y": (shape, self.dtype), "mean": statistics, "rstd": statistics}
            if self.inputs["residual"] is not None:
                outputs["summed"] = (shape, self.stream)
        else:
            outputs = {"grad_x": (shape, self.stream)}
            sums = ((-(-self.rows // 5), self.channels), torch.float32)
            if self.inputs["weight"] is not None:
                outputs |= {"partial_weight": sums, "partial_bias": sums}
        if direction == "forward":
            options |= {name: ",".join(map(str, raw)) for name, raw in self.roundings.items()}
        return simt.run("layer_norm", inputs | extra, outputs, options, element=self.dtype, variant=variant)

    def expected(self, summed: Tensor, dtype: torch.dtype | None) -> dict[str, Tensor]:
        """Computes the result with torch's operators in ``dtype``, or in the inputs' types, from the stored sum."""
        names = ("weight", "bias")
        leaves = {"x": summed} | {name: self.inputs[name] for name in names if self.inputs[name] is not None}
        leaves = {name: tensor.to(dtype or tensor.dtype).requires_grad_() for name, tensor in leaves.items()}
        y = plain.layer_norm(leaves["x"], leaves.get("weight"), leaves.get("bias"), eps=EPS)
        loss = (y * self.inputs["grad_y"].to(y.dtype)).sum()
        if self.inputs["grad_summed"] is not None:
            loss = loss + (leaves["x"] * self.inputs["grad_summed"].to(y.dtype)).sum()
        grads = torch.autograd.grad(loss, list(leaves.values()))
        y = y if dtype == torch.float64 else y.to(self.dtype)
        return {"y": y.detach()} | {f"grad_{name}": grad for name, grad in zip(leaves, grads, strict=True)}


def check(case: Case, variant: str) -> None:
    """Holds both directions against float64."""
    forward = case.run("forward", ("x", "residual", "weight", "bias"), variant=variant)
    summed = case.inputs["x"]
    if case.inputs["residual"] is not None:
        summed = summed + case.inputs["residual"]
        assert torch.equal(forward["summed"], summed)
    exact, same = case.expected(summed, torch.float64), case.expected(summed, None)
    assert_as_accurate(forward["y"], same["y"], exact["y"], factor=FORWARD_FACTOR, name="y")
    wide = summed.double()
    rstd = (wide.var(-1, correction=0) + EPS).rsqrt()
    torch.testing.assert_close(forward["mean"].double(), wide.mean(-1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(forward["rstd"].double(), rstd, rtol=1e-5, atol=1e-6)

    known = {"x": summed, "mean": forward["mean"], "rstd": forward["rstd"]}
    backward = case.run("backward", ("grad_y", "grad_summed", "weight"), variant=variant, **known)
    assert_as_accurate(backward["grad_x"], same["grad_x"], exact["grad_x"], factor=BACKWARD_FACTOR, name="grad_x")
    for name in ("weight", "bias"):
        if case.inputs[name] is not None:
            actual = backward[f"partial_{name}"].sum(0).to(case.parameter_dtype)
            grad = f"grad_{name}"
            assert_as_accurate(actual, same[grad], exact[grad], factor=BACKWARD_FACTOR, name=grad)


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("channels", WIDTHS)
def test_every_width(result_variant: str, channels: int, types: str) -> None:
    # 13 rows: more than the warps of a small grid, and a chunk that is not full
    check(Case(13, channels, types, residual=True), result_variant)


@pytest.mark.parametrize("types", CHECKED_TYPES)
@pytest.mark.parametrize("channels", WIDTHS)
def test_accesses_at_every_width(checked_variant: str, channels: int, types: str) -> None:
    check(Case(13, channels, types, residual=True), checked_variant)


@pytest.mark.parametrize("types", CHECKED_TYPES)
def test_without_residual_or_parameters(simt_variant: str, types: str) -> None:
    check(Case(7, 192, types, residual=False, parameters=False), simt_variant)


def test_a_non_finite_number_spoils_its_own_row_only() -> None:
    case = Case(9, 192, "float32", residual=False)
    expected = case.run("forward", ("x", "weight", "bias"), variant="plain")["y"]
    case.inputs["x"][4, 3] = torch.inf
    y = case.run("forward", ("x", "weight", "bias"), variant="plain")["y"]
    assert y[4].isnan().all()
    y[4] = expected[4]
    assert torch.equal(y, expected)


def test_a_large_mean_costs_no_accuracy() -> None:
    case = Case(40, 768, "float32", residual=False)
    case.inputs["x"] += 1000.0
    y = case.run("forward", ("x", "weight", "bias"), variant="plain")["y"]
    same, exact = (case.expected(case.inputs["x"], dtype)["y"] for dtype in (None, torch.float64))
    assert_as_accurate(y, same, exact, factor=FORWARD_FACTOR)


# round_sum, round_operand, round_result, each to nearest, ties to even
ROUNDINGS: dict[str, tuple[FloatFormat | None, ...]] = {
    "fp16": (FloatFormat.fp16(), FloatFormat.fp16(), FloatFormat.fp16()),
    "operand": (None, FloatFormat.ieee(8, 10), None),
    "different": (FloatFormat.fp16(), FloatFormat.fp8_e5m2(), FloatFormat.ieee(8, 10)),
}


def rounding_case(roundings: str, channels: int, *, residual: bool) -> Case:
    case = Case(9, channels, "float32", residual=residual)
    names = ("round_sum", "round_operand", "round_result")
    chosen = dict(zip(names, ROUNDINGS[roundings], strict=True))
    if not residual:
        del chosen["round_sum"]
    case.roundings = {name: float_rounding(one) for name, one in chosen.items() if one is not None}
    return case


def by_the_cpu(case: Case) -> dict[str, Tensor]:
    """What the CPU's operator makes of the forward."""
    x, residual, weight, bias = (case.inputs[name] for name in ("x", "residual", "weight", "bias"))
    raw = [case.roundings.get(name) for name in ("round_sum", "round_operand", "round_result")]
    if residual is None:
        y, mean, rstd = torch.ops.vitfast.layer_norm_forward(x, weight, bias, EPS, *raw[1:])
        return {"y": y, "mean": mean, "rstd": rstd}
    results = torch.ops.vitfast.add_layer_norm_forward(x, residual, weight, bias, EPS, *raw)
    return dict(zip(("summed", "y", "mean", "rstd"), results, strict=True))


def from_statistics(case: Case, summed: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    """The result as the statistics make it, rounding by rounding."""

    def rounded(values: Tensor, name: str) -> Tensor:
        raw = case.roundings.get(name)
        return values if raw is None else torch.ops.vitfast.quantize_float(values, raw, None)

    y = (rounded(summed.float(), "round_operand") - mean[:, None]) * rstd[:, None]
    y = reference.fused_multiply_add(y, case.inputs["weight"].float(), case.inputs["bias"].float())
    return rounded(y, "round_result").to(case.dtype)


@pytest.mark.parametrize("residual", [False, True], ids=["alone", "add"])
@pytest.mark.parametrize("channels", [192, 1280])
@pytest.mark.parametrize("roundings", ROUNDINGS)
def test_rounds_as_the_cpu(result_variant: str, roundings: str, channels: int, residual: bool) -> None:
    check_rounding(result_variant, roundings, channels, residual=residual)


@pytest.mark.parametrize("roundings", ["fp16", "different"])
def test_accesses_with_roundings(checked_variant: str, roundings: str) -> None:
    check_rounding(checked_variant, roundings, 192, residual=True)


def check_rounding(variant: str, roundings: str, channels: int, *, residual: bool) -> None:
    case = rounding_case(roundings, channels, residual=residual)
    for row, size in ((1, 1e-6), (2, 3e4)):  # subnormal numbers, and numbers that overflow
        case.inputs["x"][row] *= size
    names = ("x", "residual", "weight", "bias")
    results = case.run("forward", names, variant=variant)
    expected = by_the_cpu(case)
    summed = expected.get("summed", case.inputs["x"])
    if residual:
        assert_same_bits(results["summed"], summed)
    assert_same_bits(results["y"], from_statistics(case, summed, results["mean"], results["rstd"]))
    for name in ("mean", "rstd"):
        torch.testing.assert_close(results[name], expected[name], rtol=1e-5, atol=1e-6, equal_nan=True)
    if torch.ops.vitfast.cpu_capability() != "baseline":  # which has no fused multiply-add
        vectors = slice(0, channels // 16 * 16)  # nor has the CPU's rest of a row
        by_statistics = from_statistics(case, summed, expected["mean"], expected["rstd"])
        assert_same_bits(expected["y"][:, vectors], by_statistics[:, vectors])


def test_a_row_of_ties_shows_the_rule(result_variant: str) -> None:
    case = Case(3, 192, "float32", residual=True)
    for name in ("x", "residual"):  # sums are odd multiples of half a spacing of fp16
        case.inputs[name] = torch.randint(-2048, 2048, (3, 192)).float()
    case.inputs["residual"] += 4096.0
    case.roundings = {"round_sum": float_rounding(FloatFormat.fp16())}
    results = case.run("forward", ("x", "residual", "weight", "bias"), variant=result_variant)
    assert_same_bits(results["summed"], by_the_cpu(case)["summed"])
