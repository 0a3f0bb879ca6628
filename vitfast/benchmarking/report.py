"""The findings of one benchmark run, as a table for people and as JSON for programs."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vitfast.benchmarking.comparison import Outcome, Standing
from vitfast.benchmarking.spread import Spread
from vitfast.errors import UserError
from vitfast.text_table import percent, text_table

FORMAT_VERSION = 1

LEGEND = (
    "time: median (quartiles) of interleaved rounds. speed: against the fastest other subject of the same comparison, "
    "formed round by round; above 1 is faster. error: relative L2 distance to the reference. "
    "[in brackets]: does less work than the others, a bound. of peak: share of the multiply-adds that registers alone "
    "reach, or a large matrix product; of copy: share of the bytes that a large copy moves; both in the fastest of the "
    "same rounds."
)


@dataclass(frozen=True)
class Report:
    """One run of the benchmark.

    Attributes:
        machine: see ``describe_machine``.
        options: as they were given.
        warnings: what makes the figures doubtful.
        outcomes: one for each comparison.
    """

    machine: dict[str, Any]
    options: dict[str, Any]
    warnings: list[str] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)


def machine_line(machine: dict[str, Any]) -> str:
    """The machine in two lines of text."""
    cpu, packages = machine["cpu"], machine["packages"]
    libraries = ", ".join(f"{name} {packages[name]}" for name in ("torch", "torchvision", "timm") if packages.get(name))
    gpu = f"{machine['gpu']['name']}; " if machine["gpu"] else ""
    instruction_set = machine["build_info"]["cpu"]["instruction_set"]
    # a virtual machine's processor may call itself "Intel(R) Xeon(R) Processor": these tell its generation
    telling = [name for name in cpu["instruction_sets"] if name.startswith(("avx512_", "amx_", "sve"))]
    model = f"{cpu['model']} ({' '.join(telling)})" if telling else cpu["model"]
    return (
        f"{gpu}{model}, {cpu['cores']} cores, {cpu['threads']} threads, load {machine['load_average']}, "
        f"{machine['date']}\nvitfast {packages['vitfast']} (CPU kernels: {instruction_set}), {libraries}, "
        f"Python {machine['python']}"
    )


def outcome_text(outcome: Outcome) -> str:
    """One comparison as plain text: title, table, who could not take part."""
    header, rows = _cells(outcome)
    lines = [_heading(outcome), text_table(header, rows)]
    return "\n".join(lines + [f"without {name}: {why}" for name, why in outcome.left_out.items()])


def markdown(report: Report) -> str:
    """The whole report as Markdown, for a results folder."""
    blocks = ["# Benchmark results", machine_line(report.machine).replace("\n", "  \n"), LEGEND]
    blocks += [f"**Warning**: {warning}" for warning in report.warnings]
    for outcome in report.outcomes:
        header, rows = _cells(outcome)
        blocks.append(f"## {outcome.title}")
        blocks.append(markdown_table(header, rows))
        notes = [_work(outcome), *(f"without {name}: {why}" for name, why in outcome.left_out.items())]
        if any(notes):
            blocks.append("  \n".join(note for note in notes if note))
    return "\n\n".join(blocks) + "\n"


def write_report(report: Report, path: Path) -> Path:
    """Writes ``path`` (JSON) and, beside it, the tables as Markdown.

    Args:
        report: what to write.
        path: a file ending in ``.json``; it is replaced if it exists.

    Returns:
        The Markdown file's path.

    Raises:
        UserError: the files cannot be written.
    """
    return write_files({"format_version": FORMAT_VERSION, **asdict(report)}, markdown(report), path)


def write_files(content: dict[str, Any], text: str, path: Path) -> Path:
    """Writes ``content`` to ``path`` as JSON and ``text`` beside it, as ``write_report``."""
    table = path.with_suffix(".md")
    json_text = json.dumps(_rounded(content), indent=1) + "\n"
    try:
        for target, one in ((path, json_text), (table, text)):
            temporary = target.with_name(target.name + ".tmp")
            temporary.write_text(one, encoding="utf-8")
            os.replace(temporary, target)
    except OSError as error:
        raise UserError(f"json={path} cannot be written: {error.strerror or error}") from error
    return table


def read_outcomes(path: Path) -> list[Outcome]:
    """Reads what ``write_report`` has written; nothing if there is no such file.

    Raises:
        UserError: the file holds something else.
    """
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format_version"] != FORMAT_VERSION:
            raise ValueError(f"its format_version is {content['format_version']}, not {FORMAT_VERSION}")
        return [
            Outcome(**{**outcome, "standings": [_standing(row) for row in outcome["standings"]]})
            for outcome in content["outcomes"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"json={path} holds no results that could be gone on with ({error}); use another file"
        ) from None


def _standing(row: dict[str, Any]) -> Standing:
    speedup = row["speedup"]
    return Standing(
        **{**row, "time_ms": Spread(**row["time_ms"]), "speedup": None if speedup is None else Spread(**speedup)}
    )


def number(value: float | None) -> str:
    """Three significant digits, without an exponent where that is readable; ``-`` for None."""
    if value is None:
        return "-"
    if value >= 1000:
        return f"{value:,.0f}"
    return re.sub(r"\.$", "", f"{value:#.3g}") if value >= 0.001 else f"{value:.1e}"


def _cells(outcome: Outcome) -> tuple[list[str], list[list[str]]]:
    """Header and rows; rate columns appear only where the comparison has them."""
    columns = [("subject", [f"[{one.subject}]" if one.is_limit else one.subject for one in outcome.standings])]
    columns.append(("time", [_time(one.time_ms) for one in outcome.standings]))
    rates = (("images/s", "images_per_s"), ("GFLOP/s", "gflop_per_s"), ("GB/s", "gigabyte_per_s"))
    for title, attribute in rates:
        values = [getattr(one, attribute) for one in outcome.standings]
        if any(value is not None for value in values):
            columns.append((title, [number(value) for value in values]))
    if any(one.peak_share is not None for one in outcome.standings):
        columns.append(("of peak", [percent(one.peak_share) for one in outcome.standings]))
    if any(one.copy_share is not None for one in outcome.standings):
        columns.append(("of copy", [percent(one.copy_share) for one in outcome.standings]))
    columns.append(("speed", [_speed(one) for one in outcome.standings]))
    columns.append(("against", [one.against or "-" for one in outcome.standings]))
    columns.append(("error", ["-" if one.error is None else _error(one.error) for one in outcome.standings]))
    columns.append(("rounds", [str(one.rounds) for one in outcome.standings]))
    header = [title for title, _ in columns]
    return header, [list(row) for row in zip(*(cells for _, cells in columns), strict=True)]


def _time(time_ms: Spread) -> str:
    """Median and quartiles in one unit, ms or µs."""
    unit, factor = ("ms", 1.0) if time_ms.median >= 1.0 else ("µs", 1e3)
    shown = time_ms.scaled(factor)
    return f"{number(shown.median)} {unit} ({number(shown.lower)}–{number(shown.upper)})"


def _speed(standing: Standing) -> str:
    speedup = standing.speedup
    return "-" if speedup is None else f"{speedup.median:.2f}x ({speedup.lower:.2f}–{speedup.upper:.2f})"


def _error(error: float) -> str:
    return "0" if error == 0.0 else f"{error:.1e}"


def _heading(outcome: Outcome) -> str:
    work = _work(outcome)
    return outcome.title + (f" ({work})" if work else "")


def _work(outcome: Outcome) -> str:
    parts = []
    if outcome.gflop is not None:
        parts.append(f"{number(outcome.gflop)} GFLOP")
    if outcome.gigabyte is not None:
        parts.append(f"{number(outcome.gigabyte * 1e3)} MB")
    if outcome.reference_name:
        parts.append(f"error against {outcome.reference_name}")
    return "; ".join(parts)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    ruler = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ruler, *rows))


def _rounded(value: Any) -> Any:
    """Numbers to six digits, which is more than any of them is good for; NaN and infinities to null, as JSON needs."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if value - value == 0.0 else None
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(one) for one in value]
    return value
