"""What does an accelerated model's time on the CPU go to?

    CXXFLAGS=-g1 python setup.py build_ext --inplace
    python benchmarks/cpu_shares.py [key=value …] json=benchmarks/results/cpu_shares-MACHINE.json

Samples the process with Linux's ``perf`` while it classifies random images, and looks up (``nm``, ``addr2line``) in
which function of ``csrc/packed`` each sample was, inlined ones included: that needs line tables, which ``-g1`` adds to
the CPU library. A sample counts for the instruction that the processor waits for. ``--help`` lists the options.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vitfast.benchmarking.cpu_shares import CpuSharesOptions, run_cpu_shares
from vitfast.commands.run_command import run_command
from vitfast.config import load_options


def measure_shares(arguments: Sequence[str]) -> int:
    return run_cpu_shares(load_options(CpuSharesOptions, list(arguments), "python benchmarks/cpu_shares.py"))


if __name__ == "__main__":
    sys.exit(run_command(measure_shares, sys.argv[1:]))
