"""How fast are numbers rounded, beside a copy of them?

    python benchmarks/rounding.py [key=value …] json=benchmarks/results/rounding-MACHINE.json

A minute; ``all_roundings=true`` measures the other roundings, too. ``--help`` lists the options.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vitfast.benchmarking.rounding_comparison import RoundingOptions, run_rounding_benchmark
from vitfast.commands.run_command import run_command
from vitfast.config import load_options


def measure_rounding(arguments: Sequence[str]) -> int:
    return run_rounding_benchmark(load_options(RoundingOptions, list(arguments), "python benchmarks/rounding.py"))


if __name__ == "__main__":
    sys.exit(run_command(measure_rounding, sys.argv[1:]))
