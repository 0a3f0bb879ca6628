"""A file of weights as it is: named tensors, nothing renamed or left out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitfast.errors import UserError
from vitfast.weights.archive import check_archive
from vitfast.weights.npz_file import read_npz_file
from vitfast.weights.safetensors_file import read_safetensors_file
from vitfast.weights.sharded_file import INDEX_ENDING, read_sharded_file
from vitfast.weights.torch_file import read_torch_file

# in front of every key: from wrappers of the model (DataParallel, torch.compile, Lightning), from Flax's parameter tree
_PREFIXES = ("module.", "_orig_mod.", "model.", "params/", "opt/target/")

_HINT = "check that it was downloaded whole, and is the file rather than a web page about it"


class _OtherKind(NamedTuple):
    """A kind of file that is taken for weights by mistake."""

    beginning: bytes
    what: str
    advice: str


_OTHER_KINDS = (
    _OtherKind(rb"version https://git-lfs", "a Git LFS pointer, not the file itself", "fetch it with `git lfs pull`"),
    _OtherKind(rb"\s*<(!doctype|html|\?xml|head)", "a web page, not weights", _HINT),
    _OtherKind(rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd", "a compressed archive", "unpack it first"),
    _OtherKind(rb"\x89HDF", "an HDF5 file (of Keras)", "give the model's .npz, .safetensors or torch file"),
)


@dataclass(frozen=True)
class RawFile:
    """What ``read_raw_file`` found.

    Attributes:
        path: the file.
        tensors: all weights, under the file's own keys.
        wrapper: the entry that held them, ``"model"`` for example, or ``""``.
        ignored: the other entries, an optimizer's state for example.
        metadata: texts that a safetensors file carries.
        beside: what a torch file holds beside the entry with the weights.
    """

    path: Path
    tensors: dict[str, Tensor]
    wrapper: str = ""
    ignored: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    beside: Mapping[str, Any] = field(default_factory=dict)


def read_raw_file(path: Path) -> RawFile:
    """Reads a ``.npz``, ``.safetensors`` or torch file. What it is, its content says, not its name.

    The file is not trusted: nothing in it is executed, and no more is allocated than it holds.

    Raises:
        UserError: it is none of these, is damaged, or is refused; the message says why.
    """
    raw = _read_sharded(path) if path.name.endswith(INDEX_ENDING) else _reader(path)(path)
    for key, tensor in raw.tensors.items():
        _check_tensor(path, key, tensor)
    return replace(raw, tensors=_without_prefixes({key: tensor.detach() for key, tensor in raw.tensors.items()}))


def _reader(path: Path) -> Callable[[Path], RawFile]:
    if not path.is_file():
        raise UserError(f"{path} is no file; give the file that holds the weights")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if not head:
        raise UserError(f"{path} is empty; download or copy it again")
    # Eight bytes with the header's length, below 2^32, then the header: first, since the length may be any beginning.
    if head[4:9] == b"\0\0\0\0{":
        return _read_safetensors
    if head.startswith(b"PK"):
        names = check_archive(path)
        if any(name.endswith("/constants.pkl") for name in names):
            raise UserError(f"{path} is a TorchScript program, not weights; save its state_dict() instead")
        return _read_npz if any(name.endswith(".npy") for name in names) else _read_torch
    for kind in _OTHER_KINDS:
        if re.match(kind.beginning, head, re.IGNORECASE):
            raise UserError(f"{path} is {kind.what}; {kind.advice}")
    if head.startswith(b"\x80"):
        return _read_torch  # a pickle, as torch.save wrote until 1.6
    what = " but a text file" if _is_text(head) else ", or its beginning is damaged"
    raise UserError(f"{path} is no .npz, .safetensors or torch file (.pth, .pt, .bin, .tar){what}; {_HINT}")


def _is_text(head: bytes) -> bool:
    return all(byte in b"\t\n\r" or byte >= 0x20 for byte in head) and head.isascii()


def _read_sharded(path: Path) -> RawFile:
    return RawFile(path, read_sharded_file(path, lambda part: _reader(part)(part).tensors))


def _read_npz(path: Path) -> RawFile:
    return RawFile(path, read_npz_file(path))


def _read_safetensors(path: Path) -> RawFile:
    tensors, metadata = read_safetensors_file(path)
    return RawFile(path, tensors, metadata=metadata)


def _read_torch(path: Path) -> RawFile:
    content = read_torch_file(path)
    return RawFile(path, content.tensors, content.wrapper, content.ignored, beside=content.beside)


def _check_tensor(path: Path, key: str, tensor: Tensor) -> None:
    """Refuses what is no plain tensor, and one that claims more elements than its file holds (with stride 0)."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise UserError(
            f"{path}: {key} is no dense tensor of numbers (it is sparse, or without data); "
            "save the float32 weights of the model instead"
        )
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise UserError(
            f"{path}: {key} claims {tensor.numel():,} elements, more than the file holds for it; it was refused"
        )


def _without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES * 2:  # wrappers nest: module._orig_mod.
        if tensors and all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    return tensors
