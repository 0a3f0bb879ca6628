"""Faults planted in kernels, and which layers of tests/simt find them.

The layers: ``results`` (a case's own check), ``address`` (AddressSanitizer), ``race``, ``pending`` and
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
class Mutant:
    """A change of a source, and which layers find it."""

    name: str
    file: str
    old: str
    new: str
    found_by: frozenset[str]

    def plant(self) -> dict[str, str]:
        """Returns the changed file, as ``simt.build`` takes it."""
        if not self.file:
            return {}
        source = (simt.ROOT / self.file).read_text()
        assert source.count(self.old) == 1, f"{self.file} no longer says {self.old!r} once"
        return {self.file: source.replace(self.old, self.new)}


def mutant(name: str, file: str, old: str, new: str, *found_by: str) -> Mutant:
    """A mutant that these layers find."""
    return Mutant(name, file, old, new, frozenset(found_by))


_NO_FAULT = Mutant("the kernel itself", "", "", "", frozenset())


def faults_test(
    program: str, cases: Callable[[], Sequence[Case]], mutants: Sequence[Mutant], defines: tuple[str, ...] = ()
) -> Callable[[Mutant | None], None]:
    """Makes a test: every mutant is found by the layers that it names, and nothing is found in the kernel itself.

    That takes minutes and is marked ``slow``; that every fault still has its place in the source is seen always.

    Args:
        program: a name in tests/simt/programs.
        cases: makes calls on which every mutant shows.
        mutants: of the program's kernel.
        defines: as in ``simt.build``; those of one instance are quick to compile.
    """
    slow = [pytest.param(mutant, id=mutant.name, marks=pytest.mark.slow) for mutant in (_NO_FAULT, *mutants)]

    @pytest.mark.parametrize("planted", [pytest.param(None, id="every fault has its place"), *slow])
    def test(planted: Mutant | None) -> None:
        if planted is None:
            for mutant in mutants:
                mutant.plant()
        else:
            found = _found_by(program, cases(), planted.plant(), defines)
            assert found == planted.found_by, f"found by {sorted(found)}, not by {sorted(planted.found_by)}"

    return test


def _found_by(
    program: str, cases: Sequence[Case], replaced: dict[str, str], defines: tuple[str, ...]
) -> frozenset[str]:
    """Builds every variant of a mutant, runs the cases and says which layers have found something."""
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
