"""The text of ``--help``, generated from the option dataclasses."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import reduce
from operator import getitem
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from vitfast.config.option import OptionInfo, format_value, list_options
from vitfast.config.recipes import list_recipes
from vitfast.config.schema import Config

_WIDTH = 120
_REQUIRED = "(required)"
_NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"


def help_text(schema: type = Config, prog: str = "python -m vitfast.train", values: DictConfig | None = None) -> str:
    """Describes the options of a command: key, type, default, meaning and allowed values, by section.

    Args:
        schema: the dataclass of the options. Its class variables ``example`` (arguments) and ``most_used`` (keys), if
            it has them, come first.
        prog: the command.
        values: the defaults to show, e.g. those of a recipe; None: those of the dataclass.
    """
    if values is None:
        values = OmegaConf.structured(schema)
    defaults: Any = OmegaConf.to_container(values, resolve=False)
    options = list_options(schema)
    required = "".join(f" {key}=…" for key, info in options.items() if info.required)
    parts = [f"usage: {prog}{required} [key=value …] [--help] [--print-config]", _summary(schema)]
    if example := getattr(schema, "example", ""):
        parts.append(f"example: {prog} {example}")
    most_used: tuple[str, ...] = getattr(schema, "most_used", ())
    tables = _tables(options, defaults, most_used)
    if most_used:
        parts.append(tables.pop(0))
    if schema is Config:
        names = list_recipes()
        width = max(map(len, names))
        parts.append("\n".join(["recipes:", *(f"  {name:<{width}}  {line}" for name, line in names.items())]))
        parts.append(
            f"The defaults shown are those of recipe={defaults['recipe']}; 'recipe=NAME --help' shows another's.\n"
            "--print-config prints the configuration as YAML."
        )
    return "\n\n".join([*parts, *tables])


def _tables(options: dict[str, OptionInfo], values: Any, most_used: Sequence[str]) -> list[str]:
    """A table of the most used options, if any, one of the top-level options and one of each section, all aligned."""
    groups = {"most used options:": [options[key] for key in most_used]} if most_used else {}
    for key, info in options.items():
        section = key.rpartition(".")[0]
        heading = f"{section}: {_summary(info.section)}" if section else "options:"
        groups.setdefault(heading, []).append(info)
    shown = {}
    for key in options:
        value = reduce(getitem, key.split("."), values)
        shown[key] = _REQUIRED if value == MISSING else format_value(value)
    widths = (
        max(map(len, options)),
        max(len(info.type_name()) for info in options.values()),
        max(map(len, shown.values())),
    )
    blocks = []
    for heading, members in groups.items():
        rows = [_row((info.key, info.type_name(), shown[info.key]), info, widths) for info in members]
        blocks.append("\n".join([heading, *rows]))
    return blocks


def _row(cells: tuple[str, str, str], info: OptionInfo, widths: tuple[int, int, int]) -> str:
    allowed = info.limits.describe()
    if not info.limits.choices:
        allowed = allowed.replace(" ", _NO_BREAK_SPACE)
    meaning = info.help + (f" [{allowed}]" if allowed else "")
    head = "  " + "".join(f"{cell:<{width}}  " for cell, width in zip(cells, widths, strict=True))
    lines = textwrap.wrap(meaning, max(_WIDTH - len(head), 40), break_long_words=False)
    return (head + ("\n" + " " * len(head)).join(lines)).replace(_NO_BREAK_SPACE, " ").rstrip()


def _summary(schema: type) -> str:
    return (schema.__doc__ or "").strip().split("\n")[0]
