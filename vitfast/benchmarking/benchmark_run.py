"""The ``benchmark`` command: from its options to tables on the terminal and a file of results."""

from __future__ import annotations

import gc
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import torch

from vitfast.benchmarking.chart import draw_chart
from vitfast.benchmarking.comparison import Comparison, disagreements, run_comparison
from vitfast.benchmarking.device_limits import with_limits
from vitfast.benchmarking.engine_comparison import engine_comparison
from vitfast.benchmarking.machine import busy_warning, describe_machine
from vitfast.benchmarking.model_comparison import inference_comparison
from vitfast.benchmarking.operator_comparison import operator_comparisons
from vitfast.benchmarking.options import BenchmarkOptions
from vitfast.benchmarking.report import LEGEND, Report, machine_line, outcome_text, read_outcomes, write_report
from vitfast.benchmarking.run_options import RunOptions
from vitfast.benchmarking.timer import Timer, create_timer
from vitfast.benchmarking.training_comparison import training_comparison
from vitfast.device import select_device
from vitfast.errors import UserError


def run_benchmark(options: BenchmarkOptions) -> int:
    """Measures what the options ask for; prints each table as soon as it is there.

    Returns:
        The exit code: 0, or 1 if a subject's results disagree with the reference.

    Raises:
        UserError: an option is not possible on this machine.
    """
    device = select_device(options.device)
    comparisons = list_comparisons(options, device)
    if options.limits:
        comparisons = [with_limits(comparison, device) for comparison in comparisons]
    return measure_and_report(options, comparisons, device, cold_cache=options.cold_cache)


def list_comparisons(options: BenchmarkOptions, device: torch.device) -> list[Comparison]:
    """The questions that the options ask, models first; fp16 has no training step."""
    comparisons: list[Comparison] = []
    cases = list(product(options.models(), options.precisions(), options.batches()))
    peers = options.engines()
    if peers:
        if device.type != "cpu":
            raise UserError("peers= compares engines on the CPU; give device=cpu")
        return [engine_comparison(model, batch, precision, peers) for model, precision, batch in cases]
    if options.mode in ("inference", "all"):
        comparisons += [
            inference_comparison(
                model, batch, precision, device, compile=options.compile, libraries=options.library_names()
            )
            for model, precision, batch in cases
        ]
    if options.mode in ("training", "all"):
        comparisons += [
            training_comparison(
                model, batch, precision, device, compile=options.compile, libraries=options.library_names()
            )
            for model, precision, batch in cases
            if precision != "fp16"
        ]
    if options.mode in ("operators", "all"):
        for model, precision, batch in cases:
            comparisons += operator_comparisons(
                model,
                batch,
                precision,
                device,
                names=options.operators(),
                backward=options.backward,
                heads=options.heads,
            )
    return comparisons


def measure_and_report(
    options: RunOptions, comparisons: list[Comparison], device: torch.device, *, cold_cache: bool = False
) -> int:
    """Runs comparisons one after the other, prints them, and writes the results, anew after each comparison.

    One that does not fit into the device's memory is told by a warning, and the others go on.

    Args:
        options: what was asked for; the seconds are shared by weight.
        comparisons: the questions.
        device: where the subjects run.
        cold_cache: empty the caches before every run.

    Returns:
        The exit code: 0, or 1 if a subject's results disagree with the reference.
    """
    with torch_threads(options.threads):
        report = _begin_report(options, device)
        known = {outcome.title for outcome in report.outcomes}
        comparisons = [comparison for comparison in comparisons if comparison.title not in known]
        all_agree = _measure(options, comparisons, create_timer(device, cold_cache=cold_cache), report)
    if options.json is not None:
        path = Path(options.json)
        table = write_report(report, path)
        engines = [outcome for outcome in report.outcomes if outcome.mode == "engines"]
        chart = path.with_suffix(".png")
        if engines:
            draw_chart(engines, chart, machine_line(report.machine))
        print(f"\nwritten: {path} and {table}" + (f" and {chart}" if engines else ""), file=sys.stderr)
    return 0 if all_agree else 1


def _begin_report(options: RunOptions, device: torch.device) -> Report:
    """Says what is measured on; an interrupted run's outcomes are there already."""
    report = Report(describe_machine(device), options.reported())
    cpu = report.machine["cpu"]
    warn_into(report, busy_warning(report.machine["load_average"], cpu["cores"]))
    if cpu["threads"] > cpu["cores"]:
        warn_into(report, f"{cpu['threads']} threads share {cpu['cores']} cores; set threads={cpu['cores']}")
    print(machine_line(report.machine), LEGEND, sep="\n", flush=True)
    if options.resume and options.json is not None:
        report.outcomes.extend(read_outcomes(Path(options.json)))
    return report


def _measure(options: RunOptions, comparisons: list[Comparison], timer: Timer, report: Report) -> bool:
    """Adds an outcome for each comparison that there is time and memory for; returns whether all results agree."""
    total_weight = sum(comparison.weight for comparison in comparisons)
    all_agree = True
    began, longest_s = time.monotonic(), 0.0
    for index, comparison in enumerate(comparisons):
        begins = time.monotonic()
        if index and options.stop_after is not None and begins - began + longest_s > options.stop_after:
            left = len(comparisons) - index
            print(f"\n{left} of {len(comparisons)} comparisons are left; resume=true goes on with them")
            break
        gc.collect()  # compiled models hold their memory in cycles
        try:
            outcome = run_comparison(comparison, timer, options.seconds * comparison.weight / total_weight)
        except torch.OutOfMemoryError:
            warn_into(report, f"{comparison.title}: the device has not enough memory for it")
            continue
        report.outcomes.append(outcome)
        print("", outcome_text(outcome), sep="\n", flush=True)
        for line in disagreements(outcome):
            warn_into(report, line)
            all_agree = False
        if options.json is not None:
            write_report(report, Path(options.json))
        longest_s = max(longest_s, time.monotonic() - begins)
    return all_agree


def warn_into(report: Report, message: str | None) -> None:
    """Warns the user and keeps the warning with the results, where it matters longer."""
    if message is not None:
        report.warnings.append(message)
        warnings.warn(message, stacklevel=2)


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Sets torch's number of CPU threads for a while; None leaves it."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if threads is None else threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
