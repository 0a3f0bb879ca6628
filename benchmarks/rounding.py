"""How fast are float32 numbers rounded to each format, compared with a copy, which moves the same bytes?

    python benchmarks/rounding.py [key=value …] json=benchmarks/results/rounding-MACHINE.json

A minute; ``all_roundings=true`` also measures the other rounding modes. ``--help`` lists the options.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitfast import ops
from vitfast.benchmarking.harness import Case
from vitfast.benchmarking.run import run_tables
from vitfast.benchmarking.run_options import RunOptions
from vitfast.benchmarking.table import Table, gigabytes
from vitfast.cli import run_command
from vitfast.config import load_options, option
from vitfast.formats import FloatFormat
from vitfast.ops.rounding import Rounding

# format -> the type by which torch can round to it, by conversion there and back
FORMATS: dict[str, torch.dtype | None] = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "tf32": None,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
    "fp6_e3m2": None,
    "fp6_e2m3": None,
    "fp4_e2m1": None,
}
ROUNDINGS: tuple[Rounding, ...] = ("nearest_even", "nearest_away", "toward_zero", "stochastic")


@dataclass
class RoundingOptions(RunOptions):
    """Measures how fast float32 numbers are rounded to each format."""

    elements: int = option(2**24, "numbers per run", minimum=1)
    all_roundings: bool = option(False, "every rounding mode, not only to the nearest even")


def list_tables(options: RoundingOptions) -> list[Table]:
    """A table for each format and rounding mode, and one for fixed point."""
    x = torch.randn(options.elements, generator=torch.Generator().manual_seed(0))
    roundings = ROUNDINGS if options.all_roundings else ROUNDINGS[:1]
    tables = [_float_table(x, name, rounding) for rounding in roundings for name in FORMATS]
    title = "quantize_fixed to 11 bits, 8 of them behind the point, nearest_even"
    return [*tables, _table(x, title, lambda: ops.quantize_fixed(x, 11, 8))]


def _float_table(x: Tensor, name: str, rounding: Rounding) -> Table:
    float_format: FloatFormat = getattr(FloatFormat, name)()
    seed = torch.tensor(0) if rounding == "stochastic" else None
    dtype = FORMATS[name] if rounding == "nearest_even" else None
    return _table(
        x,
        f"quantize_float to {name}, {rounding}",
        lambda: ops.quantize_float(x, float_format, rounding=rounding, seed=seed),
        None if dtype is None else lambda: x.to(dtype).to(x.dtype),
    )


def _table(x: Tensor, title: str, rounded: Callable[[], Tensor], by_torch: Callable[[], Tensor] | None = None) -> Table:
    def build(table: Table) -> list[Case]:
        table.gigabyte = gigabytes([x, x])
        cases = [Case("vitfast", rounded, rounded), Case("copy", x.clone, is_limit=True)]
        if by_torch is not None:
            table.reference, table.reference_name = by_torch(), "torch"
            cases.append(Case("torch", by_torch, by_torch))
        return cases

    labels = {"operator": title, "elements": x.numel()}
    return Table("operators", f"{title}, {x.numel():,} numbers", labels, "fp32", build)


def main(arguments: Sequence[str]) -> int:
    options = load_options(RoundingOptions, list(arguments), "python benchmarks/rounding.py")
    return run_tables(options, list_tables(options), torch.device("cpu"))[0]


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
