"""``vitfast benchmark``: measures speed.

Compares vitfast's models with those of torchvision and timm, and its operators with torch's, in one run with
interleaved rounds; with ``peers=all``, accelerated models with the engines that are installed. Without arguments:
ViT-Tiny in batches of 8 on this machine, in about a minute.

Exit code: 0; 1 if results disagree, which makes their times meaningless; 2 after a user error.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Literal

import torch

from vitfast.benchmarking.results import machine_line
from vitfast.benchmarking.run import run_tables
from vitfast.benchmarking.table import Table
from vitfast.commands.command_options import LIBRARIES, BenchmarkOptions
from vitfast.device import select_device
from vitfast.errors import UserError
from vitfast.figure import new_figure, save_figure
from vitfast.models.registry import resolve_name


def run(options: BenchmarkOptions) -> int:
    """Runs the command; returns the exit code."""
    device = select_device(options.device)
    code, results = run_tables(options, list_tables(options, device), device, cold_cache=options.cold_cache)
    engines = [table for table in results.tables if table.mode == "engines"]
    if options.json is not None and engines:
        path = Path(options.json).with_suffix(".png")
        draw_chart(engines, path, machine_line(results.machine))
        print(f"drawn: {path}", file=sys.stderr)
    return code


def list_tables(options: BenchmarkOptions, device: torch.device) -> list[Table]:
    """The tables for some options, models first; fp16 has no training step."""
    # torchvision and timm load slowly, and --help must not wait for them
    from vitfast.benchmarking.machine import with_limits
    from vitfast.benchmarking.model_cases import engine_table, model_table
    from vitfast.benchmarking.operator_table import operator_tables

    # each once
    cases = list(dict.fromkeys(product(map(resolve_name, options.model), options.precision, options.batch)))
    libraries = [name for name in LIBRARIES if name in options.libraries or "all" in options.libraries]
    tables: list[Table] = []
    if options.engines():
        if device.type != "cpu":
            raise UserError("peers= compares engines on the CPU; give device=cpu")
        tables = [engine_table(model, batch, precision, options.engines()) for model, precision, batch in cases]
        return [with_limits(table, device) for table in tables] if options.limits else tables
    modes: list[Literal["inference", "training"]] = ["inference", "training"]
    for mode in [mode for mode in modes if options.mode in (mode, "all")]:
        tables += [
            model_table(mode, model, batch, precision, device, compile=options.compile, libraries=libraries)
            for model, precision, batch in cases
            if mode == "inference" or precision != "fp16"
        ]
    if options.mode in ("operators", "all"):
        names = None if options.operator == ["all"] else options.operator
        for model, precision, batch in cases:
            tables += operator_tables(
                model, batch, precision, device, names=names, backward=options.backward, heads=options.heads
            )
    return [with_limits(table, device) for table in tables] if options.limits else tables


def draw_chart(tables: Sequence[Table], path: Path, title: str) -> None:
    """Draws images/s of every engine as a PNG file, one panel per table.

    Error bars are the quartiles; a dashed line is the arithmetic limit.

    Raises:
        OSError: the file cannot be written.
    """
    columns = min(3, len(tables))
    lines = -(-len(tables) // columns)
    figure = new_figure(5.2 * columns, 0.9 + 2.9 * lines, dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=9)
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes, table in zip(panels, tables, strict=False):
        engines = [row for row in table.rows if not row["is_limit"]][::-1]
        rates = [
            [1e3 * (table.images or 1) / row["time_ms"][key] for row in engines] for key in ("median", "upper", "lower")
        ]
        errors = [[abs(one - median) for one, median in zip(side, rates[0], strict=True)] for side in rates[1:]]
        names = [row["subject"] for row in engines]
        colors = ["tab:blue" if name == "vitfast" else "tab:gray" for name in names]
        bars = axes.barh(names, rates[0], xerr=errors, color=colors, ecolor="black", height=0.7)
        axes.bar_label(bars, fmt="%.3g", padding=4, fontsize=8)
        for row in table.rows:
            if row["is_limit"] and row["images_per_s"] is not None:
                axes.axvline(row["images_per_s"], color="black", linestyle="--", linewidth=1)
        axes.set_title(table.title.removesuffix(", engines"), fontsize=9)
        axes.set_xlabel("images/s", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.margins(x=0.15)
    for axes in panels[len(tables) :]:
        axes.set_visible(False)
    save_figure(figure, path)
