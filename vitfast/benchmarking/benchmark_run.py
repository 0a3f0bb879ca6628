"""The ``benchmark`` verb: from its options to tables on the terminal and a file of results."""

from __future__ import annotations

import gc
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

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
from vitfast.benchmarking.timer import create_timer
from vitfast.benchmarking.training_comparison import training_comparison
from vitfast.engine.device import select_device
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
    with torch_threads(options.threads):
        return measure_and_report(
            comparisons,
            device,
            seconds=options.seconds,
            cold_cache=options.cold_cache,
            options=asdict(options),
            json=options.json,
            resume=options.resume,
            stop_after_s=options.stop_after,
        )


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
    comparisons: list[Comparison],
    device: torch.device,
    *,
    seconds: float,
    cold_cache: bool,
    options: dict[str, Any],
    json: str | None,
    resume: bool = False,
    stop_after_s: float | None = None,
) -> int:
    """Runs comparisons one after the other, prints them, and writes the results.

    One that does not fit into the device's memory is told by a warning, and the others go on.

    Args:
        comparisons: the questions.
        device: where the subjects run.
        seconds: for all measurements together, shared by weight.
        cold_cache: empty the caches before every run.
        options: what the report says was asked for.
        json: file for the results, which is written anew after each comparison; or None.
        resume: keep the comparisons that the file has, and measure the others.
        stop_after_s: begin no comparison that would take longer than this in all, building and checking included;
            None: there is no hurry.

    Returns:
        The exit code: 0, or 1 if a subject's results disagree with the reference.
    """
    report = Report(describe_machine(device), options)
    cpu = report.machine["cpu"]
    warn_into(report, busy_warning(report.machine["load_average"], cpu["cores"]))
    if cpu["threads"] > cpu["cores"]:
        warn_into(report, f"{cpu['threads']} threads share {cpu['cores']} cores; set threads={cpu['cores']}")
    print(machine_line(report.machine), LEGEND, sep="\n", flush=True)

    if resume and json is not None:
        report.outcomes.extend(read_outcomes(Path(json)))
        known = {outcome.title for outcome in report.outcomes}
        comparisons = [comparison for comparison in comparisons if comparison.title not in known]
    timer = create_timer(device, cold_cache=cold_cache)
    total_weight = sum(comparison.weight for comparison in comparisons)
    exit_code = 0
    began, longest_s = time.monotonic(), 0.0
    for index, comparison in enumerate(comparisons):
        begins = time.monotonic()
        if index and stop_after_s is not None and begins - began + longest_s > stop_after_s:
            left = len(comparisons) - index
            print(f"\n{left} of {len(comparisons)} comparisons are left; resume=true goes on with them")
            break
        gc.collect()  # compiled models hold their memory in cycles
        try:
            outcome = run_comparison(comparison, timer, seconds * comparison.weight / total_weight)
        except torch.OutOfMemoryError:
            warn_into(report, f"{comparison.title}: the device has not enough memory for it")
            continue
        report.outcomes.append(outcome)
        print("", outcome_text(outcome), sep="\n", flush=True)
        for line in disagreements(outcome):
            warn_into(report, line)
            exit_code = 1
        if json is not None:
            write_report(report, Path(json))
        longest_s = max(longest_s, time.monotonic() - begins)
    if json is not None:
        table = write_report(report, Path(json))
        engines = [outcome for outcome in report.outcomes if outcome.mode == "engines"]
        chart = Path(json).with_suffix(".png")
        if engines:
            draw_chart(engines, chart, machine_line(report.machine))
        print(f"\nwritten: {json} and {table}" + (f" and {chart}" if engines else ""), file=sys.stderr)
    return exit_code


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
