"""The exception class of user errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


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
