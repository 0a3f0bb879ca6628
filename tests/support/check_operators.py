"""Compares operators with PyTorch once, in a subprocess per instruction set: ``check_operators.py [public] [packed]``.

Prints the active instruction set, what has been checked, then ``ok``.
"""

from __future__ import annotations

import sys

import torch

import vitfast
from support import packed_cases
from support.accuracy import assert_accurate
from support.operators import FLOATS, OPERATORS
from support.sample import Make


def check_public() -> None:
    """Runs all small samples of all public operators in all dtypes."""
    for operator in OPERATORS:
        for dtype in FLOATS:
            for sample in operator.samples(Make(dtype)):
                if sample.numel < 40_000:
                    assert_accurate(operator, sample)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(vitfast.build_info()["cpu"]["instruction_set"])
    for name in sys.argv[1:]:
        {"public": check_public, "packed": packed_cases.check_all}[name]()
        print(name)
    print("ok")
