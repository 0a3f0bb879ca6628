"""What does each number format cost in accuracy, after training and trained on?

    python benchmarks/quantization_accuracy.py
    python benchmarks/quantization_accuracy.py name=cifar10 run=runs/FOLDER aware=[FP16_16,INT8] aware_steps=300

Without options: the packaged digits, three seeds, all formats; about 15 minutes on one core. It trains float32 models,
quantizes them, and trains them on in each format (and in float32 as long, to compare with); an interrupted run goes on
where it was. ``--help`` lists the options.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vitfast.benchmarking.quantization_accuracy import AccuracyOptions, run_accuracy_benchmark
from vitfast.commands.run_command import run_command
from vitfast.config import load_options


def measure_accuracy(arguments: Sequence[str]) -> int:
    prog = "python benchmarks/quantization_accuracy.py"
    return run_accuracy_benchmark(load_options(AccuracyOptions, list(arguments), prog))


if __name__ == "__main__":
    sys.exit(run_command(measure_accuracy, sys.argv[1:]))
