"""Plain-text tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Lays out a table in plain text.

    Args:
        header: one title for each column.
        rows: the cells, as many in a row as there are titles.
        left: how many columns from the left are aligned left (words); the others are aligned right (numbers).
    """
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        aligned = (
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(aligned).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *(line(row) for row in rows)])


def percent(share: float | None) -> str:
    """``0.9731`` -> ``"97.31 %"``; None or NaN -> ``"-"``."""
    return "-" if share is None or share != share else f"{100 * share:.2f} %"
