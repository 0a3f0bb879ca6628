"""The seed of the fuzz tests: fixed, so that a run can be repeated, unless the environment gives another one."""

from __future__ import annotations

import os


def fuzz_seed() -> int:
    """Returns VITFAST_FUZZ_SEED, or 0."""
    return int(os.environ.get("VITFAST_FUZZ_SEED", "0"))
