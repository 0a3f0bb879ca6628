"""Measures speed: ``python -m vitfast.benchmark [model=NAME,…] [batch=1,8] [precision=fp32,bf16] [key=value …]``.

Compares vitfast's models with torchvision's and timm's, and its operators with torch's, in one run with interleaved
rounds; with ``peers=all`` accelerated models with the engines that are installed. Without arguments: ViT-Tiny in
batches of 8 on this machine, in about a minute.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the verb.

    Args:
        argv: options; None takes the command line's.

    Returns:
        The exit code: 0; 1 if results disagree, so that their times say nothing; 2 after an error that the user can
        mend.
    """
    from vitfast.commands.run_command import run_command

    return run_command(_benchmark, sys.argv[1:] if argv is None else argv)


def _benchmark(arguments: Sequence[str]) -> int:
    # parsed before torchvision and timm are loaded, so that --help and a mistake answer at once
    from vitfast.benchmarking.options import BenchmarkOptions
    from vitfast.config import load_options

    options = load_options(BenchmarkOptions, list(arguments), "python -m vitfast.benchmark")

    from vitfast.benchmarking.benchmark_run import run_benchmark

    return run_benchmark(options)


if __name__ == "__main__":
    sys.exit(main())
