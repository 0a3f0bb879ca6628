"""How fast are accelerated models on a GPU, beside timm's in eager mode and compiled?

    python benchmarks/accelerated.py [key=value …] json=benchmarks/results/models-GPU.json

The whole list takes about an hour, most of it in torch.compile; ``stop_after=480 resume=true`` measures a part of it a
call. ``--help`` lists the options.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vitfast.benchmarking.accelerated_run import AcceleratedOptions, run_accelerated_benchmark
from vitfast.commands.run_command import run_command
from vitfast.config import load_options


def measure_accelerated(arguments: Sequence[str]) -> int:
    options = load_options(AcceleratedOptions, list(arguments), "python benchmarks/accelerated.py")
    return run_accelerated_benchmark(options)


if __name__ == "__main__":
    sys.exit(run_command(measure_accelerated, sys.argv[1:]))
