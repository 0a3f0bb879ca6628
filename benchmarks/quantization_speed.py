"""What does simulated low precision cost in speed, by vitfast's kernels and by QPyTorch's?

    python benchmarks/quantization_speed.py [key=value …] json=benchmarks/results/quantization_speed-MACHINE.json

Inference and a step of quantization-aware training, beside the same model in float32. ``--help`` lists the options.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vitfast.benchmarking.quantization_comparison import QuantizationSpeedOptions, run_quantization_speed
from vitfast.commands.run_command import run_command
from vitfast.config import load_options


def measure_quantization_speed(arguments: Sequence[str]) -> int:
    command = "python benchmarks/quantization_speed.py"
    return run_quantization_speed(load_options(QuantizationSpeedOptions, list(arguments), command))


if __name__ == "__main__":
    sys.exit(run_command(measure_quantization_speed, sys.argv[1:]))
