"""What a recogniser says when a module is not what it knows."""

from __future__ import annotations


class NotRecognised(Exception):
    """A module is not of a known class in a known configuration.

    Args:
        name: of the module in the source; empty for the source itself.
        why: what is not recognised, so that it reads well after the name.
    """

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name or 'the model'}: {why}")
        self.name = name
        self.why = why
