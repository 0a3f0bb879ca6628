"""A clock that moves only when a subject runs, so that every measured number is known beforehand."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from vitfast.benchmarking.subject import Subject


class FakeClock:
    """Time that passes only while a subject of its own runs."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.seconds

    def subject(self, name: str, duration: list[float] | float, **options: Any) -> Subject:
        """A subject whose runs take a fixed time, or the times of a list, whose last one stays."""
        listed = duration if isinstance(duration, list) else [duration]
        durations = itertools.chain(listed, itertools.repeat(listed[-1]))

        def run() -> None:
            self.log.append(name)
            self.seconds += next(durations)

        return Subject(name, run, **options)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()
