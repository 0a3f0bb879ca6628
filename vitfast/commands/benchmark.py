"""``vitfast benchmark``: measures speed.

Compares vitfast's models with those of torchvision and timm, and its operators with torch's, in one run with
interleaved rounds; with ``peers=all``, accelerated models with the engines that are installed. Without arguments:
ViT-Tiny in batches of 8 on this machine, in about a minute.

Exit code: 0; 1 if results disagree, which makes their times meaningless; 2 after a user error.
"""

from __future__ import annotations

from collections.abc import Sequence

from vitfast.benchmarking.options import BenchmarkOptions
from vitfast.config import load_options


def run(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    options = load_options(BenchmarkOptions, list(arguments), "python -m vitfast.benchmark")
    # imported after the options are parsed: torchvision and timm load slowly, --help must not wait for them
    from vitfast.benchmarking.benchmark_run import run_benchmark

    return run_benchmark(options)
