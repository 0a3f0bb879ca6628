"""Variants in which each kernel's tests run."""

from __future__ import annotations

import pytest

from support.slow import slow

RESULTS = ["plain", pytest.param("cuda", marks=pytest.mark.cuda)]
CHECKS = ["address", "race"]


@pytest.fixture(params=[*RESULTS, *slow(CHECKS)])
def simt_variant(request: pytest.FixtureRequest) -> str:
    """How the program is built: plain, by nvcc for the GPU at hand, with AddressSanitizer, or with the race check."""
    return str(request.param)


@pytest.fixture(params=RESULTS)
def result_variant(request: pytest.FixtureRequest) -> str:
    """The variants that show wrong results."""
    return str(request.param)


@pytest.fixture(params=slow(CHECKS))
def checked_variant(request: pytest.FixtureRequest) -> str:
    """The variants that check every access to memory."""
    return str(request.param)
