"""A comparison of several cases: their agreement, their times, and the rates and ratios that follow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vitfast.benchmarking.harness import Case, Spread, Timer, Timing, measure

# largest relative L2 distance of a whole model's result to a more precise reference that rounding explains
TOLERANCE = {"fp32": 1e-3, "bf16": 1e-1, "fp16": 2e-2, "fp16_32": 2e-2, "int8": 2e-1}


# fewer runs have no 99th percentile
MIN_RUNS_P99 = 100


@dataclass
class Table:
    """One comparison: a question, and a table of the results."""

    mode: str  # "inference", "engines", "training", "operators" or "loader"
    title: str  # the question in one line; a resumed run skips the titles that it already has
    labels: dict[str, Any]  # the question for programs: model, batch, shape …
    precision: str  # the arithmetic, a key of TOLERANCE
    # returns the cases, and sets the fields below on the table that it receives; it runs right before the cases are
    # timed, since models take memory and compilation takes time
    build: Callable[[Table], Sequence[Case]] = field(repr=False)
    weight: float = 1.0  # share of the time, relative to other tables
    reference: Tensor | None = field(default=None, repr=False)  # the result that outputs are compared with
    reference_name: str = ""
    left_out: dict[str, str] = field(default_factory=dict)  # name of a case that cannot run -> the reason
    # name of an engine -> milliseconds of each of its configurations, of which the fastest is compared
    configurations: dict[str, dict[str, float]] = field(default_factory=dict)
    images: int | None = None  # per run
    gflop: float | None = None  # floating-point operations per run in 1e9
    gigabyte: float | None = None  # bytes that a run has to read and write in 1e9
    rows: list[dict[str, Any]] = field(default_factory=list)  # the results, one row per case, as in the JSON file
    processes: ExitStack = field(default_factory=ExitStack, repr=False)  # of cases; end with the measurement

    def cases(self) -> Sequence[Case]:
        """Builds the cases."""
        return self.build(self)

    def measure(self, timer: Timer, budget_s: float) -> None:
        """Builds the cases, compares their outputs with the reference, and times them for ``budget_s`` seconds."""
        with self.processes:
            self._measure(timer, budget_s)

    def _measure(self, timer: Timer, budget_s: float) -> None:
        cases = self.cases()
        errors = {}
        if self.reference is not None:
            reference, self.reference = self.reference, None
            checked = [(case.name, case.output) for case in cases if case.output is not None]
            errors = {name: relative_l2(output().to(reference.dtype), reference) for name, output in checked}
        timings = measure(cases, timer, budget_s)
        self.rows = [self._row(timing, timings, errors.get(timing.case.name)) for timing in timings]

    def disagreements(self) -> list[str]:
        """One line for each case whose error is larger than rounding explains."""
        return [
            f"{self.title}: {row['subject']} differs from {self.reference_name} by {row['error']:.1e} (relative L2), "
            f"more than {TOLERANCE[self.precision]:g}: its time is meaningless"
            for row in self.rows
            if row["error"] is not None and not agrees(row["error"], self.precision)
        ]

    def to_json(self) -> dict[str, Any]:
        """The table in the format of the results file."""
        return {**{name: getattr(self, name) for name in _SAVED}, "standings": self.rows}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Table:
        """Reads what ``to_json`` returned; KeyError if something is missing."""
        content = {"configurations": {}, **content}  # files of earlier versions lack them
        saved = {name: content[name] for name in _SAVED}
        return cls(build=lambda table: [], rows=content["standings"], **saved)

    def _row(self, timing: Timing, timings: list[Timing], error: float | None) -> dict[str, Any]:
        case, time_ms = timing.case, _milliseconds(timing)
        rivals = [other for other in timings if other is not timing and not other.case.is_limit]
        rival = min(rivals, key=lambda other: _milliseconds(other).median, default=None)
        seconds = time_ms.median / 1e3
        images: float | None = self.images
        gflop = self.gflop if case.gflop is None else case.gflop
        gigabyte = self.gigabyte if case.gigabyte is None else case.gigabyte
        if case.is_limit and (case.gflop or case.gigabyte):  # a limit of the machine, which the best round shows
            seconds, gflop, gigabyte = min(timing.samples_s), case.gflop, case.gigabyte
            # images/s as if the run consisted of nothing but multiply-adds, or memory traffic
            amount, total = (gflop, self.gflop) if gflop else (gigabyte, self.gigabyte)
            images = images * amount / total if images and amount and total else None

        def rate(amount: float | None) -> float | None:
            return None if amount is None else amount / seconds

        def share(amount: float | None, quantity: str) -> float | None:
            """The rate over that of the first limit on the same quantity."""
            limits = ((getattr(one.case, quantity), min(one.samples_s)) for one in timings if one.case.is_limit)
            limit: float | None = next((amount / fastest for amount, fastest in limits if amount), None)
            return None if amount is None or limit is None else amount / seconds / limit

        return {
            "subject": case.name,
            "is_limit": case.is_limit,
            "error": error,
            "time_ms": asdict(time_ms),
            "p99_ms": 1e3 * float(np.quantile(timing.runs_s, 0.99)) if len(timing.runs_s) >= MIN_RUNS_P99 else None,
            "rounds": len(timing.samples_s),
            "repeats": timing.repeats,
            "images_per_s": rate(images),
            "gflop_per_s": rate(gflop),
            "gigabyte_per_s": rate(gigabyte),
            "against": rival.case.name if rival else None,
            "speedup": asdict(timing.speedup_over(rival)) if rival else None,
            "peak_share": share(gflop, "gflop"),
            "copy_share": share(gigabyte, "gigabyte"),
        }


_SAVED = (
    *("mode", "title", "labels", "precision", "reference_name", "left_out", "configurations"),
    *("images", "gflop", "gigabyte"),
)


def _milliseconds(timing: Timing) -> Spread:
    return Spread.of(1e3 * sample for sample in timing.samples_s)


def relative_l2(result: Tensor, reference: Tensor) -> float:
    """Returns ``|result - reference| / |reference|``, computed in float64.

    0 for equal tensors, also if both are zero; NaN if either holds a NaN, or an infinity that the other lacks.

    Raises:
        ValueError: the shapes differ.
    """
    if result.shape != reference.shape:
        raise ValueError(f"result has shape {list(result.shape)}, but reference has {list(reference.shape)}")
    if torch.equal(result, reference):
        return 0.0
    reference = reference.detach().to("cpu", torch.float64)
    difference = result.detach().to("cpu", torch.float64) - reference
    return float(difference.norm() / reference.norm())


def agrees(error: float, precision: str) -> bool:
    """Whether the precision's rounding explains an error; False for NaN."""
    return error <= TOLERANCE[precision]


def joined(tensors: Iterable[Tensor]) -> Tensor:
    """Flattens and concatenates results in float32 or float64, so that one distance covers all of them."""
    flat = [tensor.detach().flatten() for tensor in tensors]
    dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in flat) else torch.float32
    return torch.cat([tensor.to(dtype) for tensor in flat])


def count_gflop(run: Callable[[], object]) -> float | None:
    """Counts the floating-point operations of the GEMMs, convolutions and attention in one call of ``run``, in 1e9.

    A multiply-add is two operations. The count of vitfast's run is used for all cases of a table: the work that the
    task requires, not the work that an implementation spends. None if no operator in it has a formula (LayerNorm).
    """
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() * 1e-9 or None


def gigabytes(tensors: Iterable[Tensor]) -> float:
    """The size of tensors that a run reads or writes at least once, in 1e9 bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) * 1e-9
