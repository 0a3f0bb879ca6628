"""Weights in TorchScript archives, as OpenAI distributes CLIP, read without running their program.

An archive holds ``data.pkl``, the tree of modules with their attributes, and one file ``data/NUMBER`` for each storage.
The program beside them is not read. Pickle calls what ``find_class`` returns: here only the stand-ins below, which
build objects without behaviour and tensors within the bounds of their storage.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from vitfast.errors import UserError
from vitfast.weights.restricted_pickle import explain_error

_PROGRAM = "__torch__"  # module of all classes of a program

_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class ScriptObject:
    """Stand-in for an object of the program: its attributes."""

    attributes: Mapping[Any, Any] = {}

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise ValueError("an object of the program without named attributes")
        self.attributes = state


class _Function:
    """A function that a pickle can call but not change."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call

    def __call__(self, *arguments: Any) -> Any:
        return self.call(*arguments)

    def __setstate__(self, state: object) -> None:
        raise ValueError("the state of a function")


class _ScriptUnpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file)
        self._archive = archive
        self._folder = folder
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == _PROGRAM:
            return ScriptObject
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Function(_tensor)
        if (module, name) == ("collections", "OrderedDict"):
            return _Function(dict)
        if module == "torch.jit._pickle":  # lists with the type of their elements
            return _Function(lambda values, *_: values)
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not allowed")

    def persistent_load(self, pid: Any) -> Tensor:
        """Returns the elements of a storage; its device is ignored."""
        kind, dtype, key = pid[:3]
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise ValueError(f"a reference {pid!r}")
        if key not in self._storages:
            content = bytearray(self._archive.read(f"{self._folder}data/{key}"))
            self._storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return self._storages[key]


def read_torchscript_file(path: Path, names: list[str]) -> dict[str, Any]:
    """Reads the attributes of the root module of an archive that passed ``check_archive``.

    Args:
        path: the archive.
        names: those of its members.

    Raises:
        UserError: the archive is damaged, or holds other Python objects; no code in it was executed.
    """
    folder = next(name for name in names if name.endswith("/constants.pkl")).removesuffix("constants.pkl")
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{folder}data.pkl") as file:
            root = _ScriptUnpickler(file, archive, folder).load()
    except Exception as error:  # a damaged or hostile pickle can raise anything
        raise UserError(explain_error(path, error)) from error
    if not isinstance(root, ScriptObject):
        raise UserError(f"{path} is a TorchScript archive without modules; save the model's state_dict() instead")
    return dict(root.attributes)


def _tensor(elements: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    """Stand-in for torch's function; refuses more elements than the storage has."""
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError(f"a tensor of shape {size!r} and strides {stride!r}")
    numel = math.prod(length for length in size)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if numel > len(elements) or (numel and last >= len(elements)):
        raise ValueError(f"a tensor of shape {list(size)} in a storage of {len(elements):,} elements")
    return elements.as_strided(size, stride, offset)
