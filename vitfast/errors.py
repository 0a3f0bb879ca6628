"""The one exception class for mistakes a user can mend."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in what the user gave: a file, an option, a data set.

    Its message says what was given, what is allowed and what to do. The command line prints it as one line,
    without a traceback, and leaves with exit code 2.
    """
