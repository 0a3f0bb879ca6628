"""Reads files that ``torch.save`` or TorchScript wrote: an archive, or the sequence of pickles of torch before 1.6.

An archive holds ``data.pkl``, a pickle, and one file ``data/KEY`` for each storage of tensors. The program of a
TorchScript archive, as OpenAI distributes CLIP, is not read.
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from vitfast.errors import UserError
from vitfast.files import open_regular
from vitfast.weights.npz_file import check_archive
from vitfast.weights.restricted_pickle import RestrictedUnpickler, explain_error

_PICKLE = "/data.pkl"
_OLD_MAGIC, _OLD_VERSION = 0x1950A86A20F9469CFC6C, 1001


def read_torch_file(path: Path) -> Any:
    """Reads a file of tensors, numbers, strings and containers of them.

    The file is not trusted: no code in it is executed, and no more is allocated than it holds.

    Returns:
        The content, on the CPU; a ``ScriptObject`` for a TorchScript archive.

    Raises:
        UserError: the file is damaged, or holds anything else.
    """
    try:
        with open_regular(path) as file:
            is_archive = file.read(2) == b"PK"
            file.seek(0)
            return _read_archive(file, check_archive(path)) if is_archive else _read_old_format(file)
    except Exception as error:  # a damaged or hostile pickle can raise anything
        if isinstance(error, UserError) and str(path) in str(error):
            raise
        raise UserError(explain_error(path, error)) from error


def _read_archive(file: IO[bytes], names: list[str]) -> Any:
    pickles = [name for name in names if name.endswith(_PICKLE) and name.count("/") == 1]
    if len(pickles) != 1:
        raise ValueError(f"{len(pickles)} members data.pkl")
    folder = pickles[0].removesuffix(_PICKLE)
    storages: dict[str, Tensor] = {}
    with zipfile.ZipFile(file) as archive:
        if f"{folder}/byteorder" in names and archive.read(f"{folder}/byteorder") != sys.byteorder.encode():
            raise ValueError("its numbers have another byte order than this machine")

        def storage(dtype: torch.dtype, key: str, *_: object) -> Tensor:
            if key not in storages:
                storages[key] = _elements(bytearray(archive.read(f"{folder}/data/{key}")), dtype)
            if storages[key].dtype != dtype:
                raise ValueError(f"storage {key} with two types")
            return storages[key]

        content = archive.read(pickles[0])
        return RestrictedUnpickler(io.BytesIO(content), len(content), storage).load()


def _read_old_format(file: IO[bytes]) -> Any:
    """The pickles are a magic number, a version, the system, the content and the keys of the storages that follow."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    buffers: dict[str, bytearray] = {}
    storages: dict[str, Tensor] = {}

    def storage(dtype: torch.dtype, key: str, location: object, numel: int, view: Any = None) -> Tensor:
        if key not in storages:
            nbytes = numel * dtype.itemsize
            if type(numel) is not int or not 0 <= nbytes <= size - sum(map(len, buffers.values())):
                raise ValueError("a storage of more elements than the file holds")
            buffers[key] = bytearray(nbytes)
            storages[key] = _elements(buffers[key], dtype)
        if storages[key].dtype != dtype:
            raise ValueError(f"storage {key} with two types")
        if view is None:
            return storages[key]
        _, first, length = view
        return storages[key][first : first + length]

    def load() -> Any:
        return RestrictedUnpickler(file, size, storage).load()

    if load() != _OLD_MAGIC or load() != _OLD_VERSION:
        raise ValueError("no file of torch.save")
    system = load()
    if system["little_endian"] != (sys.byteorder == "little"):
        raise ValueError("its numbers have another byte order than this machine")
    content, keys = load(), load()
    if sorted(keys) != sorted(buffers):
        raise ValueError("it lacks storages")
    for key in keys:
        numel = int.from_bytes(file.read(8), sys.byteorder)
        if numel != len(storages[key]) or file.readinto(buffers[key]) != len(buffers[key]):  # type: ignore[attr-defined]
            raise ValueError(f"storage {key} is incomplete")
    return content


def _elements(content: bytearray, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
