"""The command ``vitfast <verb> …``."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Sequence

from vitfast import __version__
from vitfast.commands.run_command import run_command
from vitfast.errors import UserError

# verb -> what it does; `vitfast VERB …` and `python -m vitfast.VERB …` are the same
VERBS = {
    "train": "train a model; without options: handwritten digits, about a minute",
    "prepare": "bring a data set into the layout that training reads",
    "evaluate": "measure a checkpoint: accuracy, calibration, a table by class",
    "exits": "find the thresholds at which images leave a model with exits early",
    "quantize": "bring a checkpoint into low precision, and measure what that costs",
    "predict": "name what images show",
    "visualize": "draw where a model looks in images",
    "benchmark": "measure how fast a model runs on this machine",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``vitfast <verb> …``.

    Args:
        argv: verb and its options; None takes the command line's.

    Returns:
        The exit code of the verb; 2 for an unknown verb.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] in ("--version", "version"):
        print(f"vitfast {__version__}")
        return 0
    return run_command(_dispatch, arguments)


def usage() -> str:
    """The verbs with a line each."""
    width = max(len(verb) for verb in VERBS)
    return "\n".join(
        [
            f"vitfast {__version__}: train and run Vision Transformers, fast",
            "",
            "usage: vitfast VERB [key=value ...]      (or: python -m vitfast.VERB [key=value ...])",
            "",
            *(f"  {verb.ljust(width)}  {text}" for verb, text in VERBS.items()),
            "",
            "vitfast VERB --help lists the options of a verb.",
        ]
    )


def _dispatch(arguments: Sequence[str]) -> int:
    verb, *options = arguments
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the verbs are {', '.join(VERBS)}"
        raise UserError(f"unknown verb {verb!r}; {hint}")
    name = f"vitfast.{verb}"
    if importlib.util.find_spec(name) is None:
        raise UserError(f"this installation has no verb {verb!r}: {name} is missing; install vitfast again")
    return importlib.import_module(name).main(options)
