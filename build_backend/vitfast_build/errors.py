"""The one error of the build."""

from __future__ import annotations


class BuildError(Exception):
    """A build that cannot go on. Its text is for the user: what is wrong, and the command that mends it."""
