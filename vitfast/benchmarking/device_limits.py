"""What a device can do at most, measured in the same rounds as the subjects: how fast it copies and multiplies."""

from __future__ import annotations

from dataclasses import replace

import torch

from vitfast.benchmarking.comparison import Comparison, Contest
from vitfast.benchmarking.model_comparison import DTYPES
from vitfast.benchmarking.subject import Subject

# on a GPU far beyond its caches, on a CPU small enough for a dry run
_COPIED_BYTES = {"cuda": 2**30, "cpu": 2**24}
_MATRIX_SIZE = {"cuda": 8192, "cpu": 256}


def with_limits(comparison: Comparison, device: torch.device) -> Comparison:
    """Adds the device's limits to the subjects of a comparison, so that its table gives everyone's share of them.

    Args:
        comparison: any.
        device: where it runs.
    """

    def build() -> Contest:
        contest = comparison.build()
        return replace(contest, subjects=[*contest.subjects, *device_limits(device, comparison.precision)])

    return replace(comparison, build=build)


def device_limits(device: torch.device, precision: str) -> list[Subject]:
    """Returns a large copy, and a large matrix product in a precision.

    Args:
        device: where they run.
        precision: a key of ``DTYPES``.
    """
    source = torch.ones(_COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    size = _MATRIX_SIZE[device.type]
    # random numbers: a GPU takes more power for them than for zeros, and slows down
    left, right = torch.randn(2, size, size, device=device).to(DTYPES[precision])
    product = torch.empty_like(left)
    return [
        Subject("device copy", lambda: target.copy_(source), is_limit=True, gigabyte=2e-9 * source.nbytes),
        Subject(
            "device matrix product",
            lambda: torch.mm(left, right, out=product),
            is_limit=True,
            gflop=2e-9 * size**3,
        ),
    ]
