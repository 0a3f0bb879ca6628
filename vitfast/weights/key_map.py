"""How keys and layouts of another system become ours: by tables of rules."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitfast.errors import UserError

Transform = Callable[[Tensor], Tensor]


def unchanged(tensor: Tensor) -> Tensor:
    """The same layout on both sides."""
    return tensor


def transposed(kernel: Tensor) -> Tensor:
    """Flax's Dense kernel ``[in, out]`` to torch's linear weight ``[out, in]``."""
    return kernel.permute(1, 0)


def from_hwio(kernel: Tensor) -> Tensor:
    """Flax's convolution kernel ``[height, width, in, out]`` to torch's ``[out, in, height, width]``."""
    return kernel.permute(3, 2, 0, 1)


def into_heads(kernel: Tensor) -> Tensor:
    """Flax's projection into heads ``[C, H, D]`` to a linear weight ``[H * D, C]``."""
    return kernel.permute(1, 2, 0).flatten(0, 1)


def out_of_heads(kernel: Tensor) -> Tensor:
    """Flax's projection out of heads ``[H, D, C]`` to a linear weight ``[C, H * D]``."""
    return kernel.permute(2, 0, 1).flatten(1)


def flattened(tensor: Tensor) -> Tensor:
    """One dimension for all: a number a head, which its own system keeps as ``[1, H, 1, 1]``, as ``[H]``."""
    return tensor.flatten()


def heads_bias(bias: Tensor) -> Tensor:
    """Flax's bias of a projection into heads ``[H, D]`` to ``[H * D]``."""
    return bias.flatten(0, 1)


@dataclass(frozen=True)
class Rule:
    r"""One row of a key map.

    Attributes:
        pattern: regular expression that matches a whole key of the file.
        key: our key, with ``\1`` … for the pattern's groups; or what makes ours of the file's.
        transform: from the file's layout to ours.
        part: place of this tensor among the ``parts`` that are stacked along dimension 0, as q, k and v are.
        parts: how many of the file's tensors become one of ours.
    """

    pattern: str
    key: str | Callable[[str], str]
    transform: Transform = unchanged
    part: int = 0
    parts: int = 1


def affine(pattern: str, key: str) -> tuple[Rule, ...]:
    """Rules for a layer's ``.weight`` and ``.bias``."""
    return tuple(Rule(rf"{pattern}\.{kind}", f"{key}.{kind}") for kind in ("weight", "bias"))


def stacked_affine(patterns: Sequence[str], key: str) -> tuple[Rule, ...]:
    """Rules for the ``.weight`` and ``.bias`` of several layers that are a single one here."""
    return tuple(
        Rule(rf"{pattern}\.{kind}", f"{key}.{kind}", part=part, parts=len(patterns))
        for part, pattern in enumerate(patterns)
        for kind in ("weight", "bias")
    )


def map_keys(tensors: dict[str, Tensor], rules: Sequence[Rule], source: str) -> tuple[dict[str, Tensor], list[str]]:
    """Applies to each key the first rule that matches it.

    Args:
        tensors: weights under the file's keys.
        rules: the table.
        source: the file, for messages.

    Returns:
        The weights under our keys, and the file's keys that no rule matches or whose companions are not all there.

    Raises:
        UserError: a tensor has not the number of dimensions that its layout has, or two keys mean the same weight.
    """
    found: dict[str, dict[int, tuple[str, Rule]]] = {}
    unmatched = []
    for key in tensors:
        matches = ((re.fullmatch(rule.pattern, key), rule) for rule in rules)
        match, rule = next(((match, rule) for match, rule in matches if match), (None, None))
        if match is None or rule is None:
            unmatched.append(key)
            continue
        ours = match.expand(rule.key) if isinstance(rule.key, str) else rule.key(key)
        parts = found.setdefault(ours, {})
        if rule.part in parts:
            raise UserError(f"{source} holds {ours} twice, as {parts[rule.part][0]} and as {key}; remove one of them")
        parts[rule.part] = key, rule

    mapped = {}
    for ours, parts in found.items():
        rows = [parts[part] for part in sorted(parts)]
        if len(rows) < rows[0][1].parts:
            unmatched += [key for key, _ in rows]
        else:
            mapped[ours] = _joined([(key, tensors[key], rule.transform) for key, rule in rows], source)
    return mapped, unmatched


def _joined(rows: Sequence[tuple[str, Tensor, Transform]], source: str) -> Tensor:
    transformed = []
    for key, tensor, transform in rows:
        try:
            transformed.append(transform(tensor))
        except (RuntimeError, IndexError) as error:
            raise UserError(f"{source}: {key} has shape {list(tensor.shape)}, another kind of layer's") from error
    if len(transformed) == 1:
        return transformed[0]
    try:
        return torch.cat(transformed)
    except RuntimeError as error:
        shapes = ", ".join(f"{key} {list(tensor.shape)}" for key, tensor, _ in rows)
        raise UserError(f"{source}: these belong together and have different shapes: {shapes}") from error
