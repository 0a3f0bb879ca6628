"""Files that ``torch.save`` wrote, read with torch's restricted unpickler only."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitfast.errors import UserError
from vitfast.weights.numpy_pickle import NUMPY_STAND_INS, NumpyArray, NumpyRefusedError

# Where programs put the weights in what they save; the first that is there counts. Averaged weights come first where
# the program itself evaluates those.
_WRAPPERS = (
    "classy_state_dict.base_model.model",  # VISSL
    "model_state_dict",  # DVT
    "state_dict_ema",  # T2T-ViT, timm
    "state_dict",  # timm, Pytorch-VIT, Lightning
    "model",  # DeiT, myrtle-vision
    "module",
    "net",
    "network",
    "model_ema",
)

# beside tensors and plain values: a bag of values, in which DeiT keeps its options
_HARMLESS_CLASSES: list[Any] = [argparse.Namespace, *NUMPY_STAND_INS]

# what an optimizer keeps for each parameter
_OPTIMIZER_STATE = r"(.+\.)?state\.\d+\.\w+"

# a dictionary may hold itself, or a million others
_MAX_DEPTH, _MAX_ENTRIES = 20, 100_000

# CVE-2026-24747: in torch < 2.10 a crafted file corrupts memory even under weights_only=True
_SAFE_TORCH = (2, 10)


@dataclass(frozen=True)
class TorchContent:
    """What a torch file holds.

    Attributes:
        tensors: the weights by key.
        wrapper: the entry that held them, ``"model"`` for example, or ``""``.
        ignored: the names of all other entries.
        beside: the entries beside the one that held the weights.
    """

    tensors: dict[str, Tensor]
    wrapper: str = ""
    ignored: tuple[str, ...] = ()
    beside: Mapping[str, Any] = field(default_factory=dict)


def read_torch_file(path: Path) -> TorchContent:
    """Reads the weights of a checkpoint.

    Raises:
        UserError: the file is damaged, or holds anything but tensors and plain values; nothing of it was executed.
    """
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < _SAFE_TORCH:
        warnings.warn(
            f"torch {torch.__version__} can be attacked by a crafted {path.suffix or 'torch'} file (CVE-2026-24747); "
            f"update to torch 2.10 or newer before you load {path}, or use a .safetensors file",
            RuntimeWarning,
            stacklevel=2,
        )
    try:
        with torch.serialization.safe_globals(_HARMLESS_CLASSES), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on deprecated ways in which old files hold tensors
            content = torch.load(path, map_location="cpu", weights_only=True)
        unwrapped = _unwrap(content) if isinstance(content, (dict, list)) else TorchContent({})
    except Exception as error:  # a damaged or hostile pickle can raise anything
        raise UserError(_explain(path, error)) from error
    tensors = unwrapped.tensors
    if not tensors:
        raise UserError(f"{path} holds no weights but {_describe(content)}; save the model's state_dict()")
    if all(re.fullmatch(_OPTIMIZER_STATE, key) for key in tensors):
        raise UserError(
            f"{path} holds the state of an optimizer (it has {next(iter(tensors))}) and no weights; give the file with "
            "the model's state_dict()"
        )
    return unwrapped


def _unwrap(content: Any) -> TorchContent:
    for wrapper in _WRAPPERS:
        inner, others = content, []
        path = wrapper.split(".")
        for depth, entry in enumerate(path):
            if not isinstance(inner, dict) or entry not in inner:
                break
            others += [".".join([*path[:depth], str(other)]) for other in inner if other != entry]
            inner = inner[entry]
        else:
            tensors, rest = _flatten(inner) if isinstance(inner, (dict, list)) else ({}, [])
            if tensors:
                beside = {str(key): value for key, value in content.items() if key != path[0]}
                return TorchContent(tensors, wrapper, (*others, *rest), beside)
    tensors, rest = _flatten(content)
    return TorchContent(tensors, ignored=tuple(rest))


def _flatten(content: Any) -> tuple[dict[str, Tensor], list[str]]:
    """Returns all tensors in nested dictionaries and lists by dotted key, and the keys of everything else."""
    tensors, rest = {}, []
    for count, (key, value) in enumerate(_leaves(content, "")):
        if count > _MAX_ENTRIES:
            raise ValueError(f"more than {_MAX_ENTRIES:,} entries")
        if isinstance(value, Tensor):
            tensors[key] = value
        else:
            rest.append(key)
    return tensors, rest


def _leaves(content: Any, key: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    if depth > _MAX_DEPTH:
        raise ValueError(f"nested more than {_MAX_DEPTH} levels deep")
    if isinstance(content, dict):
        items: Iterator[tuple[Any, Any]] = iter(content.items())
    elif isinstance(content, (list, tuple)):
        items = iter(enumerate(content))
    else:
        yield key, content.tensor if isinstance(content, NumpyArray) else content
        return
    for name, value in items:
        yield from _leaves(value, f"{key}.{name}" if key else str(name), depth + 1)


def _describe(content: Any) -> str:
    if isinstance(content, dict):
        return f"the entries {', '.join(map(str, list(content)[:10]))}" if content else "an empty dictionary"
    return f"one {type(content).__name__}"


def _explain(path: Path, error: Exception) -> str:
    text = str(error).strip()
    named = re.search(r"GLOBAL ([A-Za-z_]\w*(\.\w+)*)\s", text) if isinstance(error, pickle.UnpicklingError) else None
    if named or isinstance(error, NumpyRefusedError):
        what = named[1] if named else text
        return (
            f"{path} is refused: it holds Python objects ({what}) beside tensors, and loading those can run any "
            "program; nothing in it was executed. Get the weights as .safetensors or, only if you trust who made the "
            "file, convert them: safetensors.torch.save_file(torch.load(path, weights_only=False)[entry], new_path)"
        )
    lines = re.findall(r"WeightsUnpickler error: (.+)", text) or text.splitlines() or [type(error).__name__]
    return f"{path} is damaged or cut short ({lines[0]}); nothing in it was executed; download or copy it again"
