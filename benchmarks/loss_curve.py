"""Does training on vitfast's kernels learn as training on torch's operators does?

    python benchmarks/loss_curve.py [key=value …] json=benchmarks/results/loss_curve-GPU.json

200 steps of ViT-Tiny on noisy patterns, three times: torch's operators in float32 and under autocast, and vitfast's
kernels under autocast. ``--help`` lists the options.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vitfast.benchmarking.loss_curve import LossCurveOptions, run_loss_curve
from vitfast.commands.run_command import run_command
from vitfast.config import load_options


def compare_curves(arguments: Sequence[str]) -> int:
    return run_loss_curve(load_options(LossCurveOptions, list(arguments), "python benchmarks/loss_curve.py"))


if __name__ == "__main__":
    sys.exit(run_command(compare_curves, sys.argv[1:]))
