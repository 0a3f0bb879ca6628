"""Rounding of many elements beside a copy, which moves the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vitfast import ops
from vitfast.benchmarking.benchmark_run import measure_and_report
from vitfast.benchmarking.comparison import Comparison, Contest
from vitfast.benchmarking.run_options import RunOptions
from vitfast.benchmarking.subject import Subject
from vitfast.benchmarking.work import gigabytes
from vitfast.config import option
from vitfast.formats import FloatFormat
from vitfast.ops.rounding import Rounding

# what torch can store, it can round to by going there and back
_PRESETS: dict[str, torch.dtype | None] = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "tf32": None,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
    "fp6_e3m2": None,
    "fp6_e2m3": None,
    "fp4_e2m1": None,
}
_ROUNDINGS: tuple[Rounding, ...] = ("nearest_even", "nearest_away", "toward_zero", "stochastic")


@dataclass
class RoundingOptions(RunOptions):
    """Measures how fast float32 numbers are rounded to every preset, beside a copy."""

    elements: int = option(2**24, "numbers in a run", minimum=1)
    all_roundings: bool = option(False, "every rounding rather than the nearest even one")


def run_rounding_benchmark(options: RoundingOptions) -> int:
    """Measures what the options ask for and prints it.

    Returns:
        The exit code: 0, or 1 if a rounding disagrees with torch's.
    """
    x = torch.randn(options.elements, generator=torch.Generator().manual_seed(0))
    comparisons = [
        _comparison(x, name, rounding)
        for rounding in (_ROUNDINGS if options.all_roundings else _ROUNDINGS[:1])
        for name in _PRESETS
    ]
    comparisons.append(_fixed_comparison(x))
    return measure_and_report(options, comparisons, torch.device("cpu"))


def _comparison(x: Tensor, name: str, rounding: Rounding) -> Comparison:
    format: FloatFormat = getattr(FloatFormat, name)()
    seed = torch.tensor(0) if rounding == "stochastic" else None
    own = _subjects(x, lambda: ops.quantize_float(x, format, rounding=rounding, seed=seed))
    dtype = _PRESETS[name]
    if dtype is None or rounding != "nearest_even":
        return _described(x, f"quantize_float to {name}, {rounding}", own, None)

    def by_torch() -> Tensor:
        return x.to(dtype).to(x.dtype)

    return _described(
        x, f"quantize_float to {name}, {rounding}", [*own, Subject("torch", by_torch, by_torch)], by_torch
    )


def _fixed_comparison(x: Tensor) -> Comparison:
    own = _subjects(x, lambda: ops.quantize_fixed(x, 11, 8))
    return _described(x, "quantize_fixed to 11 bits, 8 of them behind the point, nearest_even", own, None)


def _subjects(x: Tensor, own: Callable[[], Tensor]) -> list[Subject]:
    return [Subject("vitfast", own, own), Subject("copy", x.clone, is_limit=True)]


def _described(x: Tensor, title: str, subjects: list[Subject], reference: Callable[[], Tensor] | None) -> Comparison:
    def build() -> Contest:
        return Contest(
            subjects=subjects,
            reference=reference,
            reference_name="" if reference is None else "torch",
            gigabyte=gigabytes([x, x]),
        )

    labels = {"operator": title, "elements": x.numel()}
    return Comparison("operators", f"{title}, {x.numel():,} numbers", labels, "fp32", 1.0, build)
