"""Holds every operator against PyTorch once, compactly: run in a subprocess for each instruction set.

Prints the instruction set in use, then ``ok``.
"""

from __future__ import annotations

import torch

import vitfast
from support.accuracy import assert_accurate
from support.operators import FLOATS, OPERATORS
from support.sample import Make


def main() -> None:
    """Runs all small samples of all operators in all dtypes."""
    torch.set_num_threads(1)
    print(vitfast.build_info()["cpu"]["instruction_set"])
    for operator in OPERATORS:
        for dtype in FLOATS:
            for sample in operator.samples(Make(dtype)):
                if sample.numel < 200_000:
                    assert_accurate(operator, sample)
    print("ok")


if __name__ == "__main__":
    main()
