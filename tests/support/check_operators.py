"""Compares all operators with PyTorch once, in a subprocess per instruction set: ``check_operators.py [packed]``.

Prints the active instruction set, then ``ok``. With ``packed`` the packed operators are compared with float64.
"""

from __future__ import annotations

import sys

import torch

import vitfast
from support import packed_cases
from support.accuracy import assert_accurate
from support.operators import FLOATS, OPERATORS
from support.sample import Make


def check_all() -> None:
    """Runs all small samples of all operators in all dtypes."""
    for operator in OPERATORS:
        for dtype in FLOATS:
            for sample in operator.samples(Make(dtype)):
                if sample.numel < 200_000:
                    assert_accurate(operator, sample)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(vitfast.build_info()["cpu"]["instruction_set"])
    packed_cases.check_all() if sys.argv[1:] == ["packed"] else check_all()
    print("ok")
