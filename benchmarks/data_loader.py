"""How many images a second come out of an image folder?

    python benchmarks/data_loader.py root=FOLDER [key=value …] json=benchmarks/results/data_loader-MACHINE.json

vitfast's loader against torchvision's ImageFolder and transforms under torch's DataLoader, over the same files, which
the first, untimed pass brings into the page cache. ``--help`` lists the options.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vitfast.benchmarking.loader_comparison import LoaderOptions, run_loader_benchmark
from vitfast.commands.run_command import run_command
from vitfast.config import load_options


def measure_loader(arguments: Sequence[str]) -> int:
    return run_loader_benchmark(load_options(LoaderOptions, list(arguments), "python benchmarks/data_loader.py"))


if __name__ == "__main__":
    sys.exit(run_command(measure_loader, sys.argv[1:]))
