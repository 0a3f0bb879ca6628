"""What all verbs have in common: how they end."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from vitfast.errors import UserError


def run_command(verb: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """Runs a verb and turns the ways it can end into an exit code.

    Args:
        verb: takes the arguments, returns an exit code.
        arguments: without the program's name.

    Returns:
        The verb's exit code; 2 after a ``UserError``, which is printed as ``error: …`` without a traceback; 130 after
        Ctrl+C; 141 when the reader of the output has gone.
    """
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        try:
            return verb(arguments)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr, flush=True)
            return 130
        except BrokenPipeError:
            # The reader (head, less) has gone. Python would complain once more when it flushes stdout at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)
