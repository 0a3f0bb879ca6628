"""``vitfast benchmark``: measures speed.

Compares vitfast's models with those of torchvision and timm, and its operators with torch's, in one run with
interleaved rounds; with ``peers=all``, accelerated models with the engines that are installed. Without arguments:
ViT-Tiny in batches of 8 on this machine, in about a minute.

Exit code: 0; 1 if results disagree, which makes their times meaningless; 2 after a user error.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

import torch

from vitfast.benchmarking.results import machine_line
from vitfast.benchmarking.run import ModelRunOptions, run_tables, seconds_option
from vitfast.benchmarking.table import Table
from vitfast.config import load_options, option
from vitfast.device import select_device
from vitfast.errors import UserError
from vitfast.figure import new_figure, save_figure
from vitfast.models.registry import resolve_name

PRECISIONS = ("fp32", "bf16", "fp16")
ENGINE_PRECISIONS = ("fp32", "bf16", "int8", "fp16_32")
LIBRARIES = ("torchvision", "timm")
PEER_NAMES = ("eager", "compile", "onnxruntime", "openvino", "torchao", "zentorch")


@dataclass
class BenchmarkOptions(ModelRunOptions):
    """Compares vitfast's models and operators with torchvision's, timm's and torch's, in one interleaved run."""

    model: list[str] = option(["vit_tiny_patch16_224"], "one or more models; see vitfast.list_models()")
    precision: list[str] = option(
        ["fp32"],
        f"one or more of {', '.join(PRECISIONS)}; fp16 is not measured in training; "
        f"with peers: {', '.join(ENGINE_PRECISIONS)}",
    )
    peers: list[str] = option(
        ["none"],
        "compare accelerated models with other engines instead; engines that are not installed are reported",
        choices=["none", "all", *PEER_NAMES],
    )
    mode: str = option(
        "all",
        "whole models in evaluation, training steps, single operators at the models' shapes, or all three",
        choices=["inference", "training", "operators", "all"],
    )
    operator: list[str] = option(
        ["all"],
        "operators: only these, by the names in the tables: operator=attention,mlp",
    )
    backward: bool = option(False, "operators: measure forward and backward together")
    heads: int | None = option(None, "operators: number of heads; null: the model's", minimum=1)
    compile: bool = option(False, "models: also measure each one with torch.compile")
    libraries: list[str] = option(["all"], "models: libraries beside vitfast", choices=["all", *LIBRARIES])
    limits: bool = option(False, "measure a large copy and a large GEMM in each table, and shares of them")
    cold_cache: bool = option(False, "flush the caches before every run")
    seconds: float = seconds_option(45.0)

    def check(self, prefix: str = "") -> None:
        """Checks the options before anything is measured."""
        super().check(prefix)
        for name in self.model:
            resolve_name(name)
        allowed = ENGINE_PRECISIONS if self.engines() else PRECISIONS
        for precision in self.precision:
            if precision not in allowed:
                raise UserError(f"precision={precision} is unknown; allowed: {', '.join(allowed)}")
        if "fp16" in self.precision and self.mode == "training":
            raise UserError("precision=fp16 cannot be measured in training, which would need a loss scale; use bf16")
        chosen = ["backward=true"] if self.backward else []
        if self.operator != ["all"]:
            chosen.append(f"operator={','.join(self.operator)}")
        if self.heads is not None:
            chosen.append(f"heads={self.heads}")
        for given in chosen:
            if self.mode not in ("operators", "all"):
                raise UserError(f"{given} is about single operators; mode={self.mode} has none, use mode=operators")
        if self.compile and self.mode == "operators":
            raise UserError(
                "compile=true is about whole models; mode=operators has none, use mode=inference or training"
            )
        if self.engines() and (self.mode not in ("inference", "all") or self.compile or chosen):
            raise UserError(
                f"peers={','.join(self.peers)} compares whole models in evaluation; "
                "leave mode, compile, operator, backward out"
            )

    def engines(self) -> list[str]:
        """The engines that accelerated models are compared with; empty: compare libraries."""
        return [name for name in PEER_NAMES if name in self.peers or "all" in self.peers]


def run(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    options = load_options(BenchmarkOptions, arguments, "python -m vitfast.benchmark")
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
