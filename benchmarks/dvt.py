"""How fast do all exits of a Dynamic Vision Transformer run, beside the code that it was published with?

    python benchmarks/dvt.py original=CHECKOUT [key=value …] json=benchmarks/results/dvt-MACHINE.json

CHECKOUT is a clone of github.com/blackfeather-wang/Dynamic-Vision-Transformer; it needs timm. ``--help`` lists the
options.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vitfast.benchmarking.family_run import DVTOptions, run_dvt_benchmark
from vitfast.commands.run_command import run_command
from vitfast.config import load_options


def measure_dvt(arguments: Sequence[str]) -> int:
    return run_dvt_benchmark(load_options(DVTOptions, list(arguments), "python benchmarks/dvt.py"))


if __name__ == "__main__":
    sys.exit(run_command(measure_dvt, sys.argv[1:]))
