"""One of the things that are measured against each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Subject:
    """One implementation in a comparison.

    Attributes:
        name: how the table calls it, e.g. ``"vitfast"`` or ``"timm"``.
        run: does the whole work once; what it returns is thrown away.
        output: returns the result by which the subjects' agreement is checked, as one tensor; None: nothing to check.
        is_limit: it does less work than the others (a plain copy beside a rounding): a bound to hold the others
            against, not a rival.
        gflop: floating-point operations in its run, in 1e9, where they are others than the comparison's.
        gigabyte: bytes that its run reads and writes, in 1e9, where they are others than the comparison's.
    """

    name: str
    run: Callable[[], object]
    output: Callable[[], Tensor] | None = None
    is_limit: bool = False
    gflop: float | None = None
    gigabyte: float | None = None
