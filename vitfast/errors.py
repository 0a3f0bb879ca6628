"""The exception class of user errors, and what raises it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class UserError(ValueError):
    """An error in the user's input: a file, an option, a data set.

    The message says what was given, what is allowed and what to do. The command line prints it without a traceback
    and exits with code 2.
    """


def one_line(error: BaseException) -> str:
    """Returns the text of an error without line breaks."""
    return " ".join(str(error).split())


@contextmanager
def explain_os_error(what: str, hint: str = "") -> Iterator[None]:
    """Turns an ``OSError`` of the block into a ``UserError`` of the form ``WHAT: REASON HINT``."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{what}: {error.strerror or error}{hint}") from error


def import_optional(module: str, what: str, extra: str | None = None) -> Any:
    """Imports a module of a package that vitfast can do without.

    Args:
        module: ``onnxruntime.quantization`` for example.
        what: what needs it, for the message.
        extra: of vitfast that installs it; None: pip knows it by the package's name.

    Raises:
        UserError: it is not installed, or does not work.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        target = package if extra is None else f"'vitfast[{extra}]'"
        reason = "" if getattr(error, "name", None) == package else f" ({one_line(error)})"
        raise UserError(f"{what} needs {package}: pip install {target}{reason}") from error
