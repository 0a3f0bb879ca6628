"""One question, the subjects that answer it, and what came out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vitfast.benchmarking.agreement import TOLERANCE, agrees, relative_l2
from vitfast.benchmarking.harness import Measurement, measure
from vitfast.benchmarking.spread import Spread
from vitfast.benchmarking.subject import Subject
from vitfast.benchmarking.timer import Timer


@dataclass(frozen=True)
class Contest:
    """The subjects of one comparison, ready to run, and the work that each run does.

    Attributes:
        subjects: who is measured.
        reference: computes the result that all outputs are held against; None: there is no second implementation.
        reference_name: what that is, in words.
        left_out: name of a subject that cannot take part -> why.
        images: images in a run.
        gflop: floating-point operations in a run, in 1e9.
        gigabyte: bytes that a run reads and writes at least, in 1e9.
    """

    subjects: list[Subject]
    reference: Callable[[], Tensor] | None = None
    reference_name: str = ""
    left_out: dict[str, str] = field(default_factory=dict)
    images: int | None = None
    gflop: float | None = None
    gigabyte: float | None = None


@dataclass(frozen=True)
class Comparison:
    """A question to measure. Building it takes memory and time, so that is done when its turn comes.

    Attributes:
        mode: ``"inference"``, ``"engines"``, ``"training"``, ``"operators"`` or ``"loader"``.
        title: the question in a line.
        labels: the same for programs: model, batch, precision, shape …
        precision: the arithmetic, a key of ``agreement.TOLERANCE``.
        weight: its share of the time, relative to the other comparisons.
        build: makes the contest.
    """

    mode: str
    title: str
    labels: dict[str, Any]
    precision: str
    weight: float
    build: Callable[[], Contest]


@dataclass(frozen=True)
class Standing:
    """One subject's figures in a comparison.

    Attributes:
        subject: its name.
        is_limit: see ``Subject``.
        error: relative L2 distance to the reference; None if there is nothing to compare.
        time_ms: of one run.
        rounds: number of samples.
        repeats: runs in a sample.
        images_per_s: at the median time; None if the run has no images.
        gflop_per_s: at the median time (of the arithmetic peak: at the shortest); None if no operation has a formula.
        gigabyte_per_s: at the median time; None if the comparison is not about memory.
        against: the fastest other subject that is no limit, None if there is no other.
        speedup: how many times faster than that one, formed round by round.
        peak_share: its rate over that of the arithmetic peak measured beside it, 0 to 1; None if none was.
        copy_share: its rate over the copy bandwidth measured beside it, 0 to 1; None if none was.
    """

    subject: str
    is_limit: bool
    error: float | None
    time_ms: Spread
    rounds: int
    repeats: int
    images_per_s: float | None
    gflop_per_s: float | None
    gigabyte_per_s: float | None
    against: str | None
    speedup: Spread | None
    peak_share: float | None = None
    copy_share: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What one comparison found.

    Attributes:
        mode: of the comparison.
        title: of the comparison.
        labels: of the comparison.
        precision: of the comparison.
        reference_name: what the errors are distances to.
        left_out: name of a subject that could not take part -> why.
        images: images in a run.
        gflop: 1e9 floating-point operations in a run.
        gigabyte: 1e9 bytes in a run.
        standings: a row for each subject.
    """

    mode: str
    title: str
    labels: dict[str, Any]
    precision: str
    reference_name: str
    left_out: dict[str, str]
    images: int | None
    gflop: float | None
    gigabyte: float | None
    standings: list[Standing]


def run_comparison(comparison: Comparison, timer: Timer, budget_s: float) -> Outcome:
    """Builds the contest, checks that its subjects agree, then measures them.

    Args:
        comparison: the question.
        timer: the clock.
        budget_s: seconds to measure for; building and checking come on top.
    """
    contest = comparison.build()
    errors = _errors(contest)
    measurements = measure(contest.subjects, timer, budget_s)
    return Outcome(
        mode=comparison.mode,
        title=comparison.title,
        labels=comparison.labels,
        precision=comparison.precision,
        reference_name=contest.reference_name,
        left_out=contest.left_out,
        images=contest.images,
        gflop=contest.gflop,
        gigabyte=contest.gigabyte,
        standings=[_standing(one, measurements, errors, contest) for one in measurements],
    )


def _errors(contest: Contest) -> dict[str, float]:
    """Name -> distance to the reference, of the subjects that have an output."""
    if contest.reference is None:
        return {}
    reference = contest.reference()
    return {
        subject.name: relative_l2(subject.output().to(reference.dtype), reference)
        for subject in contest.subjects
        if subject.output is not None
    }


def _standing(
    one: Measurement, measurements: list[Measurement], errors: dict[str, float], contest: Contest
) -> Standing:
    time_s = one.time_s
    rival = fastest_rival(one, measurements)
    # what a limit on operations says nothing of is its bytes, and the other way round
    limit_of_bytes, limit_of_operations = (
        one.subject.is_limit and work is not None for work in (one.subject.gigabyte, one.subject.gflop)
    )
    # what the machine can do shows in the round in which nothing else disturbed it
    counted_s = one.fastest_s if limit_of_bytes or limit_of_operations else time_s.median

    def rate(amount: float | None) -> float | None:
        return None if amount is None or counted_s <= 0.0 else amount / counted_s

    gflop = contest.gflop if one.subject.gflop is None and not limit_of_bytes else one.subject.gflop
    gigabyte = contest.gigabyte if one.subject.gigabyte is None and not limit_of_operations else one.subject.gigabyte
    gflop_per_s, gigabyte_per_s = rate(gflop), rate(gigabyte)
    images: float | None = contest.images
    if images is not None and limit_of_operations:
        images = images * gflop / contest.gflop if contest.gflop and gflop else None  # nothing but multiply-adds
    elif images is not None and limit_of_bytes:
        images = images * gigabyte / contest.gigabyte if contest.gigabyte and gigabyte else None

    return Standing(
        subject=one.subject.name,
        is_limit=one.subject.is_limit,
        error=errors.get(one.subject.name),
        time_ms=time_s.scaled(1e3),
        rounds=len(one.samples_s),
        repeats=one.repeats,
        images_per_s=rate(images),
        gflop_per_s=gflop_per_s,
        gigabyte_per_s=gigabyte_per_s,
        against=rival.subject.name if rival else None,
        speedup=one.speedup_over(rival) if rival else None,
        peak_share=_share(gflop_per_s, [_rate(other, other.subject.gflop) for other in measurements]),
        copy_share=_share(gigabyte_per_s, [_rate(other, other.subject.gigabyte) for other in measurements]),
    )


def _rate(limit: Measurement, amount: float | None) -> float | None:
    """What a limit reaches of a work that it is the limit of; else None."""
    return amount / limit.fastest_s if limit.subject.is_limit and amount else None


def _share(rate: float | None, limits: list[float | None]) -> float | None:
    limit = next((one for one in limits if one), None)
    return None if rate is None or limit is None else rate / limit


def fastest_rival(one: Measurement, measurements: list[Measurement]) -> Measurement | None:
    """The other subject with the smallest median time, limits left out; None if there is no other."""
    rivals = [other for other in measurements if other is not one and not other.subject.is_limit]
    return min(rivals, key=lambda other: other.time_s.median, default=None)


def disagreements(outcome: Outcome) -> list[str]:
    """A line for each subject whose result is further from the reference than rounding explains."""
    return [
        f"{outcome.title}: {standing.subject} differs from {outcome.reference_name} by {standing.error:.1e} "
        f"(relative L2), more than {TOLERANCE[outcome.precision]:g}: its time says nothing"
        for standing in outcome.standings
        if standing.error is not None and not agrees(standing.error, outcome.precision)
    ]
