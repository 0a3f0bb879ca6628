"""Compares operators with PyTorch once, in a subprocess per instruction set: ``check_operators.py [public] [packed]``.

Prints the active instruction set, what has been checked, then ``ok``.
"""

from __future__ import annotations

import sys

import torch

import vitfast
from support import packed_cases, plain
from support.accuracy import assert_accurate
from support.operators import FLOATS, OPERATORS
from support.sample import Make
from vitfast import ops
from vitfast.ops.tolerance import FORWARD_FACTOR, assert_as_accurate


def check_public() -> None:
    """Runs all small samples of all public operators in all dtypes."""
    for operator in OPERATORS:
        for dtype in FLOATS:
            for sample in operator.samples(Make(dtype)):
                if sample.numel < 40_000:
                    assert_accurate(operator, sample)
    check_large_mean()


def check_large_mean() -> None:
    """LayerNorm of numbers far from zero: a narrow vector adds many of them in each lane."""
    x = Make().normal(64, 3072, mean=-1e4)
    exact = plain.layer_norm(x.double(), eps=1e-6)
    assert_as_accurate(ops.layer_norm(x, eps=1e-6), plain.layer_norm(x, eps=1e-6), exact, factor=FORWARD_FACTOR)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(vitfast.build_info()["cpu"]["instruction_set"])
    for name in sys.argv[1:]:
        {"public": check_public, "packed": packed_cases.check_all}[name]()
        print(name)
    print("ok")
