"""Mutation testing of kernels: source changes, and the layers of tests/simt that detect them.

The layers: ``results`` (the check of a case), ``address`` (AddressSanitizer), ``race``, ``pending`` and
``uninitialized`` (the check of shared memory), ``runtime`` (the emulation itself, and the guards behind outputs).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest
from torch import Tensor

from support import simt


class Case(Protocol):
    """A call of a kernel."""

    def run(self, *, variant: str = ..., order: str = ..., program: str | Path = ...) -> dict[str, Tensor]:
        """Returns the kernel's results."""
        ...

    def check(self, results: dict[str, Tensor]) -> None:
        """Raises AssertionError where they are wrong."""
        ...


@dataclass(frozen=True)
class Mutation:
    """A change of a source file, and the layers that detect it."""

    name: str
    file: str
    old: str
    new: str
    detected_by: frozenset[str]

    def apply(self) -> dict[str, str]:
        """Returns the changed file, as ``simt.build`` takes it."""
        if not self.file:
            return {}
        source = (simt.ROOT / self.file).read_text()
        assert source.count(self.old) == 1, f"{self.file} no longer says {self.old!r} once"
        return {self.file: source.replace(self.old, self.new)}


def mutation(name: str, file: str, old: str, new: str, *detected_by: str) -> Mutation:
    """A mutation that these layers find."""
    return Mutation(name, file, old, new, frozenset(detected_by))


_UNCHANGED = Mutation("the unchanged kernel", "", "", "", frozenset())


def mutation_test(
    program: str, cases: Callable[[], Sequence[Case]], mutations: Sequence[Mutation], defines: tuple[str, ...] = ()
) -> Callable[[Mutation | None], None]:
    """Makes a test: every mutation is found by the layers that it names, and nothing is found in the kernel itself.

    That takes minutes and is marked ``slow``; that every fault still has its place in the source is seen always.

    Args:
        program: a name in tests/simt/programs.
        cases: makes calls on which every mutation shows.
        mutations: of the program's kernel.
        defines: as in ``simt.build``; those of one instance are quick to compile.
    """
    slow = [pytest.param(mutation, id=mutation.name, marks=pytest.mark.slow) for mutation in (_UNCHANGED, *mutations)]

    @pytest.mark.parametrize("mutation", [pytest.param(None, id="every mutation applies"), *slow])
    def test(mutation: Mutation | None) -> None:
        if mutation is None:
            for mutation in mutations:
                mutation.apply()
        else:
            found = _detected_by(program, cases(), mutation.apply(), defines)
            assert found == mutation.detected_by, f"found by {sorted(found)}, not by {sorted(mutation.detected_by)}"

    return test


def _detected_by(
    program: str, cases: Sequence[Case], replaced: dict[str, str], defines: tuple[str, ...]
) -> frozenset[str]:
    """Builds every variant of a mutation, runs the cases and says which layers have found something."""
    layers = set()
    for variant in ("plain", "address", "race"):
        executable = simt.build(program, variant, replaced=replaced, defines=defines)
        for case in cases:
            layers.add(_run(case, executable, "forward"))
        layers.add(_run(cases[0], executable, "reversed"))
    return frozenset(layers - {"", "crash"})  # whether a fault crashes the host is a matter of luck


def _run(case: Case, program: Path, order: str) -> str:
    try:
        results = case.run(program=program, order=order)
    except simt.SimtError as error:
        return simt.fault(error)
    try:
        case.check(results)
    except AssertionError:
        return "results"
    return ""
