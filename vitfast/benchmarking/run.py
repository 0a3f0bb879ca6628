"""Runs the tables of a benchmark: the options that all benchmarks share, and the loop that measures and writes."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from vitfast.benchmarking.harness import Timer
from vitfast.benchmarking.machine import busy_warning, describe_machine
from vitfast.benchmarking.results import LEGEND, Results, machine_line, read_tables, table_text
from vitfast.benchmarking.run_options import RunOptions
from vitfast.benchmarking.table import Table
from vitfast.errors import UserError


def run_tables(
    options: RunOptions, tables: Sequence[Table], device: torch.device, *, cold_cache: bool = False
) -> tuple[int, Results]:
    """Measures tables, prints each, and writes the results after each.

    Tables share ``options.seconds`` by weight; one that does not fit into the device's memory is skipped.

    Returns:
        The exit code: 0, or 1 if a result disagrees with its reference; and the results.
    """
    if not tables:
        raise UserError("there is nothing to measure with these options")
    with torch_threads(options.threads):
        results = Results(describe_machine(device), options.reported())
        cpu = results.machine["cpu"]
        results.warn(busy_warning(results.machine["load_average"], cpu["cores"]))
        if cpu["threads"] > cpu["cores"]:
            results.warn(f"{cpu['threads']} threads share {cpu['cores']} cores; set threads={cpu['cores']}")
        print(machine_line(results.machine), LEGEND, sep="\n", flush=True)
        if options.resume and options.json is not None:
            results.tables.extend(read_tables(Path(options.json)))
        known = {table.title for table in results.tables}
        tables = [table for table in tables if table.title not in known]
        all_agree = _measure(options, tables, Timer(device, cold_cache=cold_cache), results)
    if options.json is not None:
        results.write(Path(options.json))
        print(f"\nwritten: {options.json} and {Path(options.json).with_suffix('.md')}", file=sys.stderr)
    return (0 if all_agree else 1), results


def _measure(options: RunOptions, tables: Sequence[Table], timer: Timer, results: Results) -> bool:
    """Measures the tables that there is time and memory for; returns whether all results agree."""
    total_weight = sum(table.weight for table in tables)
    all_agree = True
    start, longest_s = time.monotonic(), 0.0
    for index, table in enumerate(tables):
        table_start = time.monotonic()
        if index and options.stop_after is not None and table_start - start + longest_s > options.stop_after:
            print(f"\n{len(tables) - index} of {len(tables)} tables are left; resume=true continues with them")
            break
        gc.collect()  # compiled models are in reference cycles
        try:
            table.measure(timer, options.seconds * table.weight / total_weight)
        except torch.OutOfMemoryError:
            table.reference = None  # frees memory
            results.warn(f"{table.title}: the device does not have enough memory for it")
            continue
        results.tables.append(table)
        print("", table_text(table), sep="\n", flush=True)
        for line in table.disagreements():
            results.warn(line)
            all_agree = False
        if options.json is not None:
            results.write(Path(options.json))
        longest_s = max(longest_s, time.monotonic() - table_start)
    return all_agree


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Sets torch's number of CPU threads temporarily; None does not change it."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if threads is None else threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
