"""What does gated positional attention cost: ConViT beside timm's, and beside the DeiT of the same size?

    python benchmarks/convit.py [key=value …] json=benchmarks/results/convit-MACHINE.json

``--help`` lists the options.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vitfast.benchmarking.family_run import ConViTOptions, run_convit_benchmark
from vitfast.commands.run_command import run_command
from vitfast.config import load_options


def measure_convit(arguments: Sequence[str]) -> int:
    return run_convit_benchmark(load_options(ConViTOptions, list(arguments), "python benchmarks/convit.py"))


if __name__ == "__main__":
    sys.exit(run_command(measure_convit, sys.argv[1:]))
