"""The exception class of user errors."""

from __future__ import annotations


class UserError(ValueError):
    """An error in the user's input: a file, an option, a data set.

    The message says what was given, what is allowed and what to do. The command line prints it without a traceback
    and exits with code 2.
    """
