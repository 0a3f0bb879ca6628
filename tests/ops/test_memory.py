"""No operator keeps memory: the resident set stays flat over a thousand forward and backward passes."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from support.accuracy import run
from support.operators import OPERATORS, Operator
from support.sample import Make

CALLS = 1000
WARM_UP_CALLS = 50
MIN_NUMEL = 2000  # a leak of one float32 tensor of this size a call would show as 8 MiB
MAX_NUMEL = 60_000
MAX_GROWTH_MIB = 4.0
STATM = Path("/proc/self/statm")


def _resident_mib() -> float:
    gc.collect()
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.skipif(not STATM.exists(), reason="needs Linux's /proc to read the resident set")
@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_resident_set_does_not_grow(operator: Operator) -> None:
    sample = next(sample for sample in operator.samples(Make()) if MIN_NUMEL < sample.numel < MAX_NUMEL)
    for _ in range(WARM_UP_CALLS):
        run(operator.public, sample)
    before = _resident_mib()
    for _ in range(CALLS):
        run(operator.public, sample)
    growth = _resident_mib() - before
    assert growth < MAX_GROWTH_MIB, f"{sample}: {growth:.1f} MiB more after {CALLS} calls"
