"""Options that are several words, ``a,b``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from vitfast.errors import UserError
from vitfast.models.registry import resolve_name

Value = TypeVar("Value")


def split_words(key: str, text: str) -> list[str]:
    """Splits ``a,b``; brackets around it, as for the list options of other commands, are allowed.

    Args:
        key: the option, for the message.
        text: its value.

    Raises:
        UserError: an element is empty.
    """
    words = [word.strip() for word in text.strip().removeprefix("[").removesuffix("]").split(",")]
    if not all(words):
        raise UserError(f"{key}={text} has an empty element; separate the values by single commas")
    return words


def known_words(key: str, text: str, allowed: Sequence[str], *, or_all: bool = False) -> list[str]:
    """Splits ``a,b`` into words that are allowed, each once.

    Args:
        key: the option, for the message.
        text: its value.
        allowed: the words that it may have.
        or_all: whether ``all`` stands for all of them.

    Raises:
        UserError: a word is empty or unknown.
    """
    words = split_words(key, text)
    if or_all and words == ["all"]:
        return list(allowed)
    for word in words:
        if word not in allowed:
            choices = ["all", *allowed] if or_all else allowed
            raise UserError(f"{key}={text}: {word!r} is unknown; allowed: {', '.join(choices)}")
    return distinct(words)


def known_models(text: str) -> list[str]:
    """Splits ``model=a,b`` into canonical names, each once.

    Raises:
        UserError: there is no such model.
    """
    return distinct([resolve_name(name) for name in split_words("model", text)])


def parse_counts(key: str, text: str, *, minimum: int) -> list[int]:
    """Turns ``"1,8"`` into ``[1, 8]``, each number once.

    Args:
        key: the option, for the message.
        text: its value.
        minimum: the smallest allowed number.

    Raises:
        UserError: an element is no whole number, or too small.
    """
    words = split_words(key, text)
    for word in words:
        if not (word.isascii() and word.isdigit() and int(word) >= minimum):
            raise UserError(f"{key}={text}: {word!r} is no whole number >= {minimum}; write {key}=8 or {key}=1,8")
    return distinct([int(word) for word in words])


def distinct(values: Sequence[Value]) -> list[Value]:
    """Each value once, in the order of their first places."""
    return list(dict.fromkeys(values))
