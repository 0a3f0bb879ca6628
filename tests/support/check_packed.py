"""Holds the packed operators against float64 once: run in a subprocess for each instruction set.

Prints the instruction set in use, then ``ok``.
"""

from __future__ import annotations

import torch

import vitfast
from support.packed_cases import check_all

if __name__ == "__main__":
    torch.set_num_threads(1)
    print(vitfast.build_info()["cpu"]["instruction_set"])
    check_all()
    print("ok")
