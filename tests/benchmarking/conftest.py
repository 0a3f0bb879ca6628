"""A clock that advances only when a case runs, so that every measured number is known beforehand."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from vitfast.benchmarking.harness import Case


class FakeClock:
    """Time that passes only while one of its cases runs."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.seconds

    def case(self, name: str, duration: list[float] | float, **options: Any) -> Case:
        """A case whose runs take a fixed time, or the times of a list, the last of which repeats."""
        listed = duration if isinstance(duration, list) else [duration]
        durations = itertools.chain(listed, itertools.repeat(listed[-1]))

        def run() -> None:
            self.log.append(name)
            self.seconds += next(durations)

        return Case(name, run, **options)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()
