"""The results of a benchmark: tables for the terminal, Markdown and JSON."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitfast.benchmarking.table import Table
from vitfast.errors import UserError, explain_os_error
from vitfast.files import atomic_file
from vitfast.text_table import percent, text_table

FORMAT_VERSION = 1

LEGEND = (
    "time: median (quartiles) of interleaved rounds. speed: against the fastest other subject of the same table, "
    "from ratios within each round; above 1 is faster. error: relative L2 distance to the reference. "
    "[in brackets]: a lower bound that does less work. of peak: share of the rate of a loop of multiply-adds on "
    "registers, or of a large GEMM; of copy: share of the bandwidth of a large copy; both in the fastest of the same "
    "rounds."
)


@dataclass(frozen=True)
class Results:
    """One run of a benchmark."""

    machine: dict[str, Any]  # see describe_machine
    options: dict[str, Any]  # the options that were given
    warnings: list[str] = field(default_factory=list)  # reasons to doubt the results
    tables: list[Table] = field(default_factory=list)

    def warn(self, message: str | None) -> None:
        """Warns the user and keeps the warning with the results; None: nothing to warn about."""
        if message is not None:
            self.warnings.append(message)
            warnings.warn(message, stacklevel=2)

    def markdown(self) -> str:
        """All tables as Markdown."""
        blocks = ["# Benchmark results", machine_line(self.machine).replace("\n", "  \n"), LEGEND]
        blocks += [f"**Warning**: {warning}" for warning in self.warnings]
        for table in self.tables:
            notes = [_work(table), *_left_out(table)]
            blocks += [f"## {table.title}", markdown_table(*_cells(table)), "  \n".join(filter(None, notes))]
        return "\n\n".join(filter(None, blocks)) + "\n"

    def write(self, path: Path) -> None:
        """Writes the results to a ``.json`` file and as Markdown beside it."""
        content = {
            "format_version": FORMAT_VERSION,
            "machine": self.machine,
            "options": self.options,
            "warnings": self.warnings,
            "outcomes": [table.to_json() for table in self.tables],
        }
        write_files(content, self.markdown(), path)


def read_tables(path: Path) -> list[Table]:
    """Reads the tables of a file that ``Results.write`` wrote; none if there is no such file."""
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format_version"] != FORMAT_VERSION:
            raise ValueError(f"its format_version is {content['format_version']}, not {FORMAT_VERSION}")
        tables = [Table.from_json(table) for table in content["outcomes"]]
        for table in tables:
            table_text(table)  # raises for rows of another format
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise UserError(f"json={path} holds no results that a run could resume ({error}); use another file") from None
    return tables


def write_files(content: dict[str, Any], text: str, path: Path) -> None:
    """Writes ``content`` to ``path`` as JSON and ``text`` beside it as Markdown, each file atomically."""
    # numbers have six digits; NaN and infinities become null, as JSON requires
    rounded = json.loads(
        json.dumps(content), parse_float=lambda text: float(f"{float(text):.6g}"), parse_constant=lambda _: None
    )
    json_text = json.dumps(rounded, indent=1) + "\n"
    with explain_os_error(f"json={path} cannot be written"):
        for target, one in ((path, json_text), (path.with_suffix(".md"), text)):
            with atomic_file(target) as temporary:
                temporary.write_text(one, encoding="utf-8")


def machine_line(machine: dict[str, Any]) -> str:
    """The machine in two lines of text."""
    cpu, packages = machine["cpu"], machine["packages"]
    libraries = ", ".join(f"{name} {packages[name]}" for name in ("torch", "torchvision", "timm") if packages.get(name))
    gpu = f"{machine['gpu']['name']}; " if machine["gpu"] else ""
    instruction_set = machine["build_info"]["cpu"]["instruction_set"]
    # a virtual machine's processor may be called just "Intel(R) Xeon(R) Processor": these show its generation
    telling = [name for name in cpu["instruction_sets"] if name.startswith(("avx512_", "amx_", "sve"))]
    model = f"{cpu['model']} ({' '.join(telling)})" if telling else cpu["model"]
    return (
        f"{gpu}{model}, {cpu['cores']} cores, {cpu['threads']} threads, load {machine['load_average']}, "
        f"{machine['date']}\nvitfast {packages['vitfast']} (CPU kernels: {instruction_set}), {libraries}, "
        f"Python {machine['python']}"
    )


def table_text(table: Table) -> str:
    """A table as plain text: title, rows, and the cases that were left out."""
    work = _work(table)
    title = f"{table.title} ({work})" if work else table.title
    return "\n".join([title, text_table(*_cells(table)), *_left_out(table)])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first column is text and whose others are numbers."""
    ruler = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ruler, *rows))


def number(value: float | None) -> str:
    """Three significant digits, without an exponent for readable sizes; ``-`` for None."""
    if value is None:
        return "-"
    if value >= 1000:
        return f"{value:,.0f}"
    return re.sub(r"\.$", "", f"{value:#.3g}") if value >= 0.001 else f"{value:.1e}"


_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "subject": lambda row: f"[{row['subject']}]" if row["is_limit"] else row["subject"],
    "time": lambda row: _time(row["time_ms"]),
    "p99": lambda row: "-" if row.get("p99_ms") is None else f"{number(row['p99_ms'])} ms",
    "images/s": lambda row: number(row["images_per_s"]),
    "GFLOP/s": lambda row: number(row["gflop_per_s"]),
    "GB/s": lambda row: number(row["gigabyte_per_s"]),
    "of peak": lambda row: percent(row.get("peak_share")),  # files of earlier versions lack the shares
    "of copy": lambda row: percent(row.get("copy_share")),
    "speed": lambda row: _speed(row["speedup"]),
    "against": lambda row: row["against"] or "-",
    "error": lambda row: _error(row["error"]),
    "rounds": lambda row: str(row["rounds"]),
}


def _cells(table: Table) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Header and rows; columns in which no row has a value are left out."""
    columns = [[title, *map(cell, table.rows)] for title, cell in _COLUMNS.items()]
    header, *rows = zip(*(column for column in columns if set(column[1:]) != {"-"}), strict=True)
    return header, list(rows)


def _time(spread: dict[str, float]) -> str:
    """Median and quartiles in the same unit, ms or µs."""
    unit, factor = ("ms", 1.0) if spread["median"] >= 1.0 else ("µs", 1e3)
    median, lower, upper = (number(factor * spread[key]) for key in ("median", "lower", "upper"))
    return f"{median} {unit} ({lower}–{upper})"


def _speed(spread: dict[str, float] | None) -> str:
    return "-" if spread is None else f"{spread['median']:.2f}x ({spread['lower']:.2f}–{spread['upper']:.2f})"


def _error(error: float | None) -> str:
    return "-" if error is None else "0" if error == 0.0 else f"{error:.1e}"


def _work(table: Table) -> str:
    parts = [
        None if table.gflop is None else f"{number(table.gflop)} GFLOP",
        None if table.gigabyte is None else f"{number(table.gigabyte * 1e3)} MB",
        f"error against {table.reference_name}" if table.reference_name else None,
    ]
    return "; ".join(filter(None, parts))


def _left_out(table: Table) -> list[str]:
    """The configurations that were tried, and what could not run."""
    tried = [
        f"{engine}: {min(times, key=lambda name: times[name])}, the fastest of "
        + ", ".join(f"{name} {number(time_ms)} ms" for name, time_ms in times.items())
        for engine, times in table.configurations.items()
    ]
    return tried + [f"without {name}: {reason}" for name, reason in table.left_out.items()]
