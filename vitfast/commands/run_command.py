"""Runs a command and turns its outcome into an exit code."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from vitfast.errors import UserError


def entry_point(command: str) -> Callable[..., int]:
    """Returns the ``main`` of ``python -m vitfast.<command>``; the command's module is imported when it is called."""

    def run(arguments: Sequence[str]) -> int:
        code: int = importlib.import_module(f"vitfast.commands.{command}").run(arguments)
        return code

    return lambda argv=None: run_command(run, sys.argv[1:] if argv is None else argv)


def run_command(command: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """Runs a command and turns its outcome into an exit code.

    Args:
        command: takes the arguments, returns an exit code.
        arguments: without the program's name.

    Returns:
        The command's exit code; 2 after a ``UserError``, which is printed as ``error: …`` without a traceback; 130
        after Ctrl+C; 141 when the reader of stdout has closed it.
    """
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            return command(arguments)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr, flush=True)
            return 130
        except BrokenPipeError:
            # The reader (head, less) has exited. Python would raise again when it flushes stdout at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)
