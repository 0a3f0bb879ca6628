"""Unpickles the content of torch files and TorchScript archives without running code.

A pickle is a program: it calls what ``find_class`` returns. Here these are the stand-ins below, which build containers,
numbers, and tensors within the bounds of their storage; everything else is refused. torch's own restricted unpickler
executes no code either, but it allocates what a file claims: ``bytearray(1 << 32)``, ``torch.Tensor(1 << 32)``.
"""

from __future__ import annotations

import argparse
import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from vitfast.errors import UserError

_PROGRAM = "__torch__"  # module of all classes of a TorchScript program

_NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
_MAX_DIMENSIONS = 8
_MAX_LENGTH = 1 << 48

# Calls may process a memoized argument again and again: at most this many items and bytes for each byte of the pickle.
_ITEMS_PER_BYTE, _HARMLESS_ITEMS = 16, 1 << 18

_OPCODES = (
    *(pickle.PROTO, pickle.STOP, pickle.MARK, pickle.BINPERSID),
    *(pickle.GLOBAL, pickle.REDUCE, pickle.NEWOBJ, pickle.BUILD),
    *(pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT, pickle.GET, pickle.BINGET, pickle.LONG_BINGET),
    *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE),
    *(pickle.INT, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT),
    *(pickle.UNICODE, pickle.BINUNICODE, pickle.SHORT_BINSTRING),
    *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
    *(pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS),
    *(pickle.EMPTY_DICT, pickle.SETITEM, pickle.SETITEMS),
)
_PLAIN = (str, bytes, int, float, bool, type(None))


class RefusedError(ValueError):
    """Content that is neither damaged nor a plain number, container or dense tensor; the text names it."""


class NumpyType:
    """Stand-in for ``numpy.dtype``, for plain numbers."""

    def __init__(self, code: str, align: object = False, copy: object = False) -> None:
        if code not in _NUMBERS:
            raise RefusedError(f"numpy.dtype({_show(code)})")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise ValueError(f"a NumPy type of byte order {_show(state[1])}")
        self.dtype = self.dtype.newbyteorder(state[1])


class NumpyArray:
    """Stand-in for ``numpy.ndarray``, with its elements in ``tensor``."""

    tensor: Tensor = torch.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, numpy_type, fortran_order, content = state
        if len(shape) > _MAX_DIMENSIONS or any(type(length) is not int or length < 0 for length in shape):
            raise ValueError(f"a NumPy array of shape {_show(*shape)}")
        expected = math.prod(shape) * numpy_type.dtype.itemsize
        if not isinstance(content, bytes) or len(content) != expected:
            raise ValueError(f"a NumPy array of shape {list(shape)} that does not hold {expected:,} bytes")
        array = np.frombuffer(bytearray(content), numpy_type.dtype).reshape(shape, order="F" if fortran_order else "C")
        self.tensor = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


class ScriptObject:
    """Stand-in for an object of a TorchScript program: its attributes."""

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


def _empty_array(array_type: type[NumpyArray], shape: object, code: object) -> NumpyArray:
    """Stand-in for ``_reconstruct``; ``__setstate__`` sets the content."""
    if array_type is not NumpyArray:
        raise ValueError("a NumPy array of another class")
    return NumpyArray()


def _number(numpy_type: NumpyType, content: bytes) -> float | int | bool:
    """Stand-in for ``scalar``."""
    if not isinstance(content, bytes) or len(content) != numpy_type.dtype.itemsize:
        raise ValueError(f"a NumPy number that does not hold {numpy_type.dtype.itemsize} bytes")
    number: float | int | bool = np.frombuffer(content, numpy_type.dtype)[0].item()
    return number


def _tensor(elements: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    """Stand-in for ``_rebuild_tensor`` and ``_rebuild_tensor_v2``; refuses more elements than the storage has."""
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or any(type(number) is not int or not 0 <= number < _MAX_LENGTH for number in numbers):
        raise ValueError(f"a tensor of shape [{_show(*size)}] and strides [{_show(*stride)}]")
    numel = math.prod(size)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if numel > len(elements) or (numel and last >= len(elements)):
        raise ValueError(
            f"a tensor of shape {list(size)} claims {numel:,} elements, more than the file holds for it: "
            f"{len(elements):,}"
        )
    return elements.as_strided(size, stride, offset)


def _tensor_of_bytes(content: Tensor, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
    """Stand-in for ``_rebuild_tensor_v3``, whose storage has bytes and whose seventh argument is the type."""
    dtype = rest[2]
    return _tensor(content[: len(content) // dtype.itemsize * dtype.itemsize].view(dtype), offset, size, stride)


def _tensor_with_attributes(rebuild: object, kind: object, arguments: Any, state: object) -> Tensor:
    """Stand-in for ``_rebuild_from_type_v2``; the attributes are dropped."""
    if rebuild is not _TENSOR:
        raise RefusedError("torch._tensor._rebuild_from_type_v2")
    return _tensor(*arguments)


def _not_dense(*_: object) -> None:
    raise UserError("a tensor in it is not dense, but sparse, quantized or without data")


def _show(*values: Any) -> str:
    """Shows plain values in a message; the text of 40 nested tuples with two links each would have 2^40 parts."""
    return ", ".join(repr(value) if type(value) in _PLAIN else type(value).__name__ for value in values[:8])


def _mapping(items: Any = ()) -> OrderedDict[Any, Any]:
    pairs = [(_key(key), value) for key, value in (items.items() if isinstance(items, dict) else items)]
    return OrderedDict(pairs)


def _key(key: Any) -> Any:
    """Returns a key of a dictionary; hashing a deeply nested one would exhaust the stack."""
    if type(key) in _PLAIN or (type(key) is tuple and all(type(part) in _PLAIN for part in key)):
        return key
    raise ValueError(f"a {type(key).__name__} as key")


# (stand-in, name in the file); NumPy 2 renamed the module
NUMPY_STAND_INS: list[tuple[Any, str]] = [
    (NumpyType, "numpy.dtype"),
    (NumpyArray, "numpy.ndarray"),
    *(
        (_Function(stand_in), f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for stand_in, name in ((_empty_array, "_reconstruct"), (_number, "scalar"))
    ),
]

_TENSOR = _Function(_tensor)
_STORAGES = {
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Double": torch.float64,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
}
_ALLOWED: dict[str, Any] = {
    **{f"{module}.{name}Storage": kind for name, kind in _STORAGES.items() for module in ("torch", "torch.cuda")},
    "torch.storage.UntypedStorage": torch.uint8,
    **{f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
    "torch._utils._rebuild_tensor": _TENSOR,
    "torch._utils._rebuild_tensor_v2": _TENSOR,
    "torch._utils._rebuild_tensor_v3": _Function(_tensor_of_bytes),
    "torch._utils._rebuild_parameter": _Function(lambda tensor, *_: tensor),
    "torch._utils._rebuild_parameter_with_state": _Function(lambda tensor, *_: tensor),
    "torch._tensor._rebuild_from_type_v2": _Function(_tensor_with_attributes),
    **{
        f"torch._utils._rebuild_{name}": _Function(_not_dense)
        for name in ("sparse_tensor", "meta_tensor_no_storage", "qtensor", "nested_tensor", "wrapper_subclass")
    },
    **dict.fromkeys(
        ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"), "a class of tensors"
    ),
    "torch.serialization._get_layout": _Function(lambda *_: "a layout"),
    "torch.Size": _Function(tuple),
    "torch.device": _Function(lambda *_: "a device"),
    "collections.OrderedDict": _Function(_mapping),
    "collections.Counter": _Function(_mapping),
    **{f"{builtins}.set": _Function(lambda items: set(map(_key, items))) for builtins in ("builtins", "__builtin__")},
    "_codecs.encode": _Function(lambda text, encoding: text.encode("latin1")),  # bytes in protocol 2
    "argparse.Namespace": argparse.Namespace,  # DeiT's options
    **{name: stand_in for stand_in, name in NUMPY_STAND_INS},
}


class RestrictedUnpickler(pickle._Unpickler):
    """Reads one pickle of tensors, numbers, strings and containers of them.

    It derives from the implementation in Python: the one in C allocates a table of the size of the largest memo index
    that a file claims.

    Args:
        file: at the first byte of the pickle.
        size: bytes of the pickle, or of the file.
        storage: returns the elements of a storage, given the arguments of its reference.
    """

    # of the base class, which typeshed does not describe
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        opcode[0]: pickle._Unpickler.dispatch[opcode[0]] for opcode in _OPCODES
    }

    def __init__(self, file: IO[bytes], size: int, storage: Callable[..., Tensor]) -> None:
        super().__init__(file, encoding="utf-8")
        self._storage = storage
        self._items_left = _ITEMS_PER_BYTE * size + _HARMLESS_ITEMS

    def find_class(self, module: str, name: str) -> Any:
        """Returns the stand-in for a class or function."""
        if module.split(".")[0] == _PROGRAM:
            return ScriptObject
        if module == "torch.jit._pickle":  # lists with the type of their elements
            return _Function(lambda values, *_: values)
        if (found := _ALLOWED.get(f"{module}.{name}")) is None:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not allowed")
        return found

    def persistent_load(self, pid: Any) -> Tensor:
        """Returns the elements of a storage; its device is ignored."""
        kind, dtype, key = pid[:3]
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise ValueError(f"a reference to {_show(*pid)}")
        return self._storage(dtype, key, *pid[3:])

    def _spend(self, values: Any) -> None:
        """Counts what a call processes."""
        sized = (tuple, list, dict, set, str, bytes)
        parts = values if isinstance(values, tuple) else (values,)
        self._items_left -= len(parts) + sum(len(part) for part in parts if isinstance(part, sized))
        if self._items_left < 0:
            raise ValueError("calls that expand it")

    def load_reduce(self) -> None:
        """Calls a stand-in."""
        arguments = self.stack.pop()
        if not isinstance(self.stack[-1], _Function) and self.stack[-1] is not NumpyType:
            raise ValueError("a call of an object")
        self._spend(arguments)
        self.stack[-1] = self.stack[-1](*arguments)

    def load_newobj(self) -> None:
        """Creates an object of a stand-in."""
        arguments, kind = self.stack.pop(), self.stack.pop()
        if kind not in (argparse.Namespace, ScriptObject) or arguments != ():
            raise ValueError("a new object")
        self.append(kind())

    def load_build(self) -> None:
        """Sets the state of an object."""
        state, target = self.stack.pop(), self.stack[-1]
        self._spend(state)
        if isinstance(target, (NumpyType, NumpyArray, ScriptObject, _Function)):
            target.__setstate__(state)
        elif isinstance(target, (argparse.Namespace, OrderedDict)):
            vars(target).update({str(key): value for key, value in state.items()})
        else:
            raise ValueError("the state of an object")

    def load_append(self) -> None:
        """Appends to a list."""
        value = self.stack.pop()
        self._top(list).append(value)

    def load_appends(self) -> None:
        """Extends a list."""
        items = self.pop_mark()
        self._top(list).extend(items)

    def load_setitem(self) -> None:
        """Sets an entry of a dictionary."""
        value, key = self.stack.pop(), self.stack.pop()
        self._top(dict)[_key(key)] = value

    def load_setitems(self) -> None:
        """Sets entries of a dictionary."""
        items, target = self.pop_mark(), self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def _top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise ValueError(f"a {type(self.stack[-1]).__name__} in place of a {kind.__name__}")
        return self.stack[-1]

    dispatch |= {
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.BUILD[0]: load_build,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
    }


def explain_error(path: Path, error: Exception) -> str:
    """Returns a message for an error in reading a torch file."""
    text = str(error).strip()
    named = re.search(r"GLOBAL ([A-Za-z_]\w*(\.\w+)*)\s", text) if isinstance(error, pickle.UnpicklingError) else None
    if named or isinstance(error, RefusedError):
        what = named[1] if named else text
        return (
            f"{path} is refused: it holds Python objects ({what}) beside tensors, and loading these can run arbitrary "
            "code; no code in it was executed. Get the weights as .safetensors or, only if you trust the author of the "
            "file, convert them: content = torch.load(path, weights_only=False), then "
            "safetensors.torch.save_file(weights, new_path), where weights is content.state_dict() if the file holds a "
            "whole model, or else the entry of content that holds them"
        )
    if isinstance(error, UserError):
        return f"{path}: {text}; save the float32 weights of the model instead"
    reason = (text.splitlines()[0] if isinstance(error, ValueError) and text else repr(error))[:200]
    return f"{path} is damaged or truncated ({reason}); no code in it was executed; download or copy it again"
