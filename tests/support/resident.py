"""Memory of this process."""

from __future__ import annotations

import gc
import os
from pathlib import Path

STATM = Path("/proc/self/statm")


def resident_mib() -> float:
    """The resident set in MiB, after a collection of garbage."""
    gc.collect()
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
