"""``KeyTable``: how the keys and layouts of one checkpoint format map to vitfast's, which are timm's for a ViT."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vitfast.errors import UserError
from vitfast.models.model_fields import ModelFields
from vitfast.models.saved_exits import SavedExits
from vitfast.models.vit import ViTFields

Transform = Callable[[Tensor], Tensor]
StateConverter = Callable[[dict[str, Tensor]], dict[str, Tensor]]
FieldReader = Callable[[Mapping[str, Tensor], Mapping[str, Any]], dict[str, Any]]
ExitReader = Callable[[Mapping[str, Any]], SavedExits | None]


def unchanged(tensor: Tensor) -> Tensor:
    """Keeps the layout."""
    return tensor


@dataclass(frozen=True)
class Rule:
    r"""One row of a key table.

    Attributes:
        pattern: regular expression that matches a whole key of the file.
        key: vitfast's key, with ``\1`` … for the pattern's groups; or a function from the file's key to vitfast's.
        transform: converts the file's layout to vitfast's.
        part: index of this tensor among ``parts`` tensors that are concatenated along dimension 0, as q, k and v are.
        parts: how many tensors of the file form one of vitfast's.
        inverse: converts vitfast's layout to the file's, for ``write_keys``.
    """

    pattern: str
    key: str | Callable[[str], str]
    transform: Transform = unchanged
    part: int = 0
    parts: int = 1
    inverse: Transform = unchanged

    def written_key(self, key: str) -> str | None:
        """Returns the file's key for vitfast's ``key``, None if the rule gives another.

        Parts of the pattern in ``(?:…)`` are left out where they are optional, and of alternatives the first is taken.
        """
        pattern = re.sub(r"\(\?:[^()]*\)[?*]", "", self.pattern)
        pattern = re.sub(r"\(\?:([^()|]*)[^()]*\)", r"\1", pattern)
        groups = re.findall(r"\(([^()]*)\)", pattern)
        if not isinstance(self.key, str):
            return None
        pieces = re.split(r"\\(\d)", self.key)  # text and numbers of groups alternate
        ours = "".join(
            f"(?P<g{piece}>{groups[int(piece) - 1]})" if index % 2 else re.escape(piece)
            for index, piece in enumerate(pieces)
        )
        match = re.fullmatch(ours, key)
        if match is None:
            return None
        for number, group in enumerate(groups, 1):
            pattern = pattern.replace(f"({group})", match[f"g{number}"], 1)
        return pattern.replace("\\.", ".")


def affine(pattern: str, key: str) -> tuple[Rule, ...]:
    """Rules for a layer's ``.weight`` and ``.bias``."""
    return tuple(Rule(rf"{pattern}\.{kind}", f"{key}.{kind}") for kind in ("weight", "bias"))


def stacked_affine(patterns: Sequence[str], key: str) -> tuple[Rule, ...]:
    """Rules for the ``.weight`` and ``.bias`` of several layers that form a single one in vitfast."""
    return tuple(
        Rule(rf"{pattern}\.{kind}", f"{key}.{kind}", part=part, parts=len(patterns))
        for part, pattern in enumerate(patterns)
        for kind in ("weight", "bias")
    )


@dataclass(frozen=True)
class KeyTable:
    """One checkpoint format. Patterns are regular expressions that match a whole key of the file.

    Attributes:
        name: the format's name in reports and messages.
        signature: patterns; every file of this format has a matching key for each.
        rules: the rows; the first one that matches a key applies. The default keeps all keys.
        fields: the model fields that all checkpoints of this format share.
        read_fields: reads further fields from the weights and the ``config.json`` beside the file; None: there are
            none.
        convert: converts all weights under vitfast's keys, where rules for single weights do not suffice; None: keeps
            them.
        read_exits: reads the thresholds of exits from the entries beside the weights; None: there are none.
        ignored: patterns of intentionally ignored keys; the report lists them as skipped.
        extra_head_layers: patterns of head layers that no vitfast model has. A head with such layers is skipped.
        unsupported: pairs of a pattern and a description: a file with a matching key is refused.
        wrapper: the file's entry that holds the weights, where only that distinguishes the format from another.
        fields_type: the fields class of the models that these weights fit.
    """

    name: str
    signature: tuple[str, ...]
    rules: tuple[Rule, ...] = (Rule(r"(.+)", r"\1"),)
    fields: Mapping[str, Any] = field(default_factory=dict)
    read_fields: FieldReader | None = None
    convert: StateConverter | None = None
    read_exits: ExitReader | None = None
    ignored: tuple[str, ...] = ()
    extra_head_layers: tuple[str, ...] = ()
    unsupported: tuple[tuple[str, str], ...] = ()
    wrapper: str | None = None
    fields_type: type[ModelFields] = ViTFields


def map_keys(tensors: dict[str, Tensor], rules: Sequence[Rule], source: str) -> tuple[dict[str, Tensor], list[str]]:
    """Applies to each key the first rule that matches it.

    Returns:
        The weights under vitfast's keys, and the file's keys that match no rule or belong to an incomplete stack.

    Raises:
        UserError: a tensor has the wrong number of dimensions for its layout, or two keys map to the same weight.
    """
    found: dict[str, dict[int, tuple[str, Rule]]] = {}
    unmatched = []
    for key in tensors:
        matches = ((rule, re.fullmatch(rule.pattern, key)) for rule in rules)
        rule, match = next(((rule, match) for rule, match in matches if match), (None, None))
        if rule is None or match is None:
            unmatched.append(key)
            continue
        name = match.expand(rule.key) if isinstance(rule.key, str) else rule.key(key)
        parts = found.setdefault(name, {})
        if rule.part in parts:
            raise UserError(f"{source} holds {name} twice, as {parts[rule.part][0]} and as {key}; remove one of them")
        parts[rule.part] = key, rule

    mapped = {}
    for name, parts in found.items():
        rows = [parts[part] for part in sorted(parts)]
        if len(rows) < rows[0][1].parts:
            unmatched += [key for key, _ in rows]
        else:
            mapped[name] = _concatenate([(key, tensors[key], rule.transform) for key, rule in rows], source)
    return mapped, unmatched


def write_keys(state: dict[str, Tensor], rules: Sequence[Rule]) -> dict[str, Tensor]:
    """Applies rules in reverse: the inverse of ``map_keys``. Weights that no rule gives keep their keys."""
    written = {}
    for key, tensor in state.items():
        found = [(name, rule) for rule in rules if (name := rule.written_key(key)) is not None]
        if not found:
            written[key] = tensor
            continue
        parts = found[0][1].parts
        chunks = tensor.chunk(parts) if parts > 1 else (tensor,)
        for name, rule in found[:parts]:
            written[name] = rule.inverse(chunks[rule.part]).contiguous()
    return written


def _concatenate(rows: Sequence[tuple[str, Tensor, Transform]], source: str) -> Tensor:
    transformed = []
    for key, tensor, transform in rows:
        try:
            transformed.append(transform(tensor))
        except (RuntimeError, IndexError) as error:
            raise UserError(
                f"{source}: {key} has shape {list(tensor.shape)}, which does not fit its layer; use another file"
            ) from error
    if len(transformed) == 1:
        return transformed[0]
    try:
        return torch.cat(transformed)
    except RuntimeError as error:
        shapes = ", ".join(f"{key} {list(tensor.shape)}" for key, tensor, _ in rows)
        raise UserError(f"{source}: tensors of one layer have different shapes: {shapes}; use another file") from error
