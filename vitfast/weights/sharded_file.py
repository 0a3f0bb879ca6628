"""Weights in several files that an index joins, as Hugging Face's ``save_pretrained`` writes large models."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

from torch import Tensor

from vitfast.errors import UserError

INDEX_ENDING = ".index.json"

_PART = r".+-\d{5}-of-\d{5}\.(safetensors|bin)"


def is_part(path: Path) -> bool:
    """Whether a file's name says that it is one of several."""
    return re.fullmatch(_PART, path.name) is not None


def read_sharded_file(index: Path, read_part: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Reads all weights that an index lists, each from the file that it names.

    Args:
        index: ``model.safetensors.index.json`` or ``pytorch_model.bin.index.json``; the files lie beside it.
        read_part: reads one of the files.

    Raises:
        UserError: the index is damaged or names a file elsewhere, or a file or a weight is missing.
    """
    files: dict[str, list[str]] = {}
    for key, name in _weight_map(index).items():
        files.setdefault(name, []).append(key)
    tensors: dict[str, Tensor] = {}
    for name, keys in files.items():
        part = index.parent / name
        if PurePath(name).name != name or name in (".", ".."):
            raise UserError(f"{index} is refused: it names {name!r}, which is no file beside it")
        if not part.is_file():
            raise UserError(f"{part} does not exist, but {index.name} lists weights in it; download all parts")
        content = read_part(part)
        missing = [key for key in keys if key not in content]
        if missing:
            raise UserError(f"{part} lacks {missing[0]}, which {index.name} says it holds; download all parts again")
        tensors |= {key: content[key] for key in keys}
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    try:
        content: Any = json.loads(index.read_text(encoding="utf-8"))
        weight_map = content["weight_map"]
        if weight_map and all(isinstance(name, str) for name in weight_map.values()):
            return dict(weight_map)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index} is damaged or no index of weights ({error!r}); download it again") from error
    raise UserError(f"{index} lists no weights; download it again")
