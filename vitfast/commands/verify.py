"""``vitfast verify``: checks and times the CUDA kernels on this GPU.

Exit code: 0 if every kernel is correct, slower ones included; 1 if one is not; 2 without a GPU or after a user error.
"""

from __future__ import annotations

from typing import Any

import torch

from vitfast.benchmarking.verification import verify
from vitfast.commands.command_options import VerifyOptions
from vitfast.ops.gpu import record_path
from vitfast.ops.library import PROVEN_STATES
from vitfast.text_table import text_table


def run(options: VerifyOptions) -> int:
    """Runs the command; returns the exit code."""
    if torch.cuda.is_available():
        print(f"verifying on {torch.cuda.get_device_name()}", flush=True)
    record = verify(quick=options.quick, repeat=options.repeat, progress=_print_outcome)
    rows = [[name, one["verdict"], _runs(one), one["detail"]] for name, one in sorted(record["kernels"].items())]
    print("", text_table(["kernel", "verdict", "runs", "detail"], rows, left=4), sep="\n")
    print(f"\nwritten: {record_path(record)}")
    correct = (*PROVEN_STATES, "slower")
    return 0 if all(one["verdict"] in correct for one in record["kernels"].values()) else 1


def _runs(outcome: dict[str, Any]) -> str:
    return PROVEN_STATES.get(outcome["verdict"], "torch")


def _print_outcome(kernel: str, outcome: dict[str, Any]) -> None:
    print(f"  {kernel}: {outcome['verdict']}", flush=True)
