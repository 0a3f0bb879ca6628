"""Variants in which each kernel's tests run."""

from __future__ import annotations

import pytest

VARIANTS = [
    "plain",
    "address",
    "race",
    pytest.param("cuda", marks=pytest.mark.cuda),
]


@pytest.fixture(params=VARIANTS)
def simt_variant(request: pytest.FixtureRequest) -> str:
    """How the program is built: plain, with AddressSanitizer, with the race check, or by nvcc for the GPU at hand."""
    return str(request.param)
