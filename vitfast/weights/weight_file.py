"""Reads files of weights in any format: named tensors under the file's keys."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from vitfast.errors import UserError
from vitfast.files import open_regular, read_text
from vitfast.weights.npz_file import check_archive, read_npz_file
from vitfast.weights.restricted_pickle import NumpyArray, ScriptObject, explain_error
from vitfast.weights.torch_file import read_torch_file

INDEX_SUFFIX = ".index.json"  # of the index of a sharded checkpoint, as Hugging Face's save_pretrained writes it

# prefixes of all keys: from wrappers of the model (DataParallel, torch.compile, Lightning), or Flax's parameter tree
_PREFIXES = ("module.", "_orig_mod.", "model.", "params/", "opt/target/")

# The entries in which programs save weights; the first one that exists applies. Averaged weights come first where the
# program itself evaluates those.
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

_OPTIMIZER_STATE = r"(.+\.)?state\.\d+\.\w+"  # keys of an optimizer's state for each parameter

# a dictionary may contain itself, or a million others
_MAX_DEPTH, _MAX_ENTRIES = 20, 100_000

_SHARD = r".+-\d{5}-of-\d{5}\.(safetensors|bin)"

_HINT = "check that the download is complete and is not a web page about the file"

# (first bytes, what the file is, what to do): files that are mistaken for weights
_OTHER_FORMATS = (
    (rb"version https://git-lfs", "a Git LFS pointer, not the file itself", "fetch it with `git lfs pull`"),
    (rb"\s*<(!doctype|html|\?xml|head)", "a web page, not weights", _HINT),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd", "a compressed archive", "unpack it first"),
    (rb"\x89HDF", "an HDF5 file (of Keras)", "give the model's .npz, .safetensors or torch file"),
)


@dataclass(frozen=True)
class WeightFile:
    """The content of a file of weights.

    Attributes:
        path: the file.
        tensors: all weights, under the file's keys.
        wrapper: the entry that held them, ``"model"`` for example, or ``""``.
        ignored: the names of all other entries, an optimizer's state for example.
        metadata: strings that a safetensors file carries.
        entries: the entries of a torch file beside the one with the weights.
    """

    path: Path
    tensors: dict[str, Tensor]
    wrapper: str = ""
    ignored: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    entries: Mapping[str, Any] = field(default_factory=dict)


def read_weight_file(path: Path) -> WeightFile:
    """Reads a ``.npz``, ``.safetensors`` or torch file, or the index of a sharded one.

    The content determines the format, not the name. The file is not trusted: no code in it is executed, and no more is
    allocated than it holds.

    Raises:
        UserError: the file has another format, is damaged, or is refused; the message says why.
    """
    weights = WeightFile(path, _read_shards(path)) if path.name.endswith(INDEX_SUFFIX) else _read_file(path)
    return replace(weights, tensors=_without_prefixes(weights.tensors))


def is_shard(path: Path) -> bool:
    """Whether a file's name marks it as one shard of a checkpoint."""
    return re.fullmatch(_SHARD, path.name) is not None


def read_safetensors(path: Path) -> WeightFile:
    """Reads all tensors and the metadata of a ``.safetensors`` file.

    Raises:
        UserError: the file is damaged, truncated or of another format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}
            return WeightFile(path, tensors, metadata=dict(file.metadata() or {}))
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is damaged or not a safetensors file ({error}); download or copy it again") from error


def _read_file(path: Path) -> WeightFile:
    if not path.is_file():
        raise UserError(f"{path} is not a file; give the file that holds the weights")
    try:
        with open_regular(path) as file:
            head = file.read(64)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if not head:
        raise UserError(f"{path} is empty; download or copy it again")
    # Eight bytes with the header's length, below 2^32, then the header. This comes first, since the length may look
    # like the beginning of another format.
    if head[4:9] == b"\0\0\0\0{":
        return read_safetensors(path)
    if head.startswith(b"PK"):
        is_npz = any(name.endswith(".npy") for name in check_archive(path))
        return WeightFile(path, read_npz_file(path)) if is_npz else _read_torch(path)
    for beginning, kind, advice in _OTHER_FORMATS:
        if re.match(beginning, head, re.IGNORECASE):
            raise UserError(f"{path} is {kind}; {advice}")
    if head.startswith(b"\x80"):
        return _read_torch(path)  # a pickle, as torch.save wrote until 1.6
    is_text = all(byte in b"\t\n\r" or byte >= 0x20 for byte in head) and head.isascii()
    what = " but a text file" if is_text else ", or its first bytes are damaged"
    raise UserError(f"{path} is not a .npz, .safetensors or torch file (.pth, .pt, .bin, .tar){what}; {_HINT}")


def _read_torch(path: Path) -> WeightFile:
    content = read_torch_file(path)
    try:
        if isinstance(content, ScriptObject):
            weights = WeightFile(path, _flatten(content)[0])
        else:
            weights = _unwrap(path, content) if isinstance(content, (dict, list)) else WeightFile(path, {})
    except Exception as error:  # dictionaries that contain themselves can raise anything
        raise UserError(explain_error(path, error)) from error
    tensors = weights.tensors
    if not tensors:
        raise UserError(f"{path} holds no weights but {_describe(content)}; save the model's state_dict()")
    if all(re.fullmatch(_OPTIMIZER_STATE, key) for key in tensors):
        raise UserError(
            f"{path} holds the state of an optimizer (it has {next(iter(tensors))}) and no weights; give the file with "
            "the model's state_dict()"
        )
    return weights


def _unwrap(path: Path, content: Any) -> WeightFile:
    for wrapper in _WRAPPERS:
        inner, others = content, []
        names = wrapper.split(".")
        for depth, name in enumerate(names):
            if not isinstance(inner, dict) or name not in inner:
                break
            others += [".".join([*names[:depth], str(other)]) for other in inner if other != name]
            inner = inner[name]
        else:
            tensors, rest = _flatten(inner) if isinstance(inner, (dict, list)) else ({}, [])
            if tensors:
                entries = {str(key): value for key, value in content.items() if key != names[0]}
                return WeightFile(path, tensors, wrapper, (*others, *rest), entries=entries)
    tensors, rest = _flatten(content)
    return WeightFile(path, tensors, ignored=tuple(rest))


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
    if isinstance(content, ScriptObject):
        content = content.attributes
    if isinstance(content, Mapping):
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
    if isinstance(content, ScriptObject):
        return "the attributes of a TorchScript archive"
    return f"one {type(content).__name__}"


def _read_shards(index: Path) -> dict[str, Tensor]:
    """Reads all weights that an index lists, each from its shard beside the index."""
    shards: dict[str, list[str]] = {}
    for key, name in _weight_map(index).items():
        shards.setdefault(name, []).append(key)
    tensors: dict[str, Tensor] = {}
    for name, keys in shards.items():
        shard = index.parent / name
        if PurePath(name).name != name or name in (".", ".."):
            raise UserError(f"{index} is refused: it names {name!r}, which is not a file beside it")
        if not shard.is_file():
            raise UserError(f"{shard} does not exist, but {index.name} lists weights in it; download all shards")
        content = _read_file(shard).tensors
        missing = [key for key in keys if key not in content]
        if missing:
            raise UserError(f"{shard} lacks {missing[0]}, which {index.name} lists in it; download all shards again")
        tensors |= {key: content[key] for key in keys}
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    try:
        content: Any = json.loads(read_text(index))
        weight_map = content["weight_map"]
        if weight_map and all(isinstance(name, str) for name in weight_map.values()):
            return dict(weight_map)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index} is damaged or not an index of weights ({error!r}); download it again") from error
    raise UserError(f"{index} lists no weights; download it again")


def _without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES * 2:  # wrappers nest: module._orig_mod.
        if tensors and all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    return tensors
