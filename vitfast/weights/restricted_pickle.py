"""Files written by ``torch.save``, read with torch's restricted unpickler only.

The released Dynamic Vision Transformers store NumPy numbers beside their weights. NumPy's functions are not allowed in
the unpickler: they allocate what a file claims and trust its type descriptions. The stand-ins below accept plain
numbers only, and no more of them than the file's bytes hold.
"""

from __future__ import annotations

import argparse
import math
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitfast.errors import UserError

_NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
_MAX_DIMENSIONS = 8


class NumpyRefusedError(ValueError):
    """A NumPy array or scalar that does not hold plain numbers."""


class NumpyType:
    """Stand-in for ``numpy.dtype``, for plain numbers."""

    def __init__(self, code: str, align: object = False, copy: object = False) -> None:
        if code not in _NUMBERS:
            raise NumpyRefusedError(f"numpy.dtype({code!r})")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise ValueError(f"a NumPy type of byte order {state[1]!r}")
        self.dtype = self.dtype.newbyteorder(state[1])


class NumpyArray:
    """Stand-in for ``numpy.ndarray``, with its elements in ``tensor``."""

    tensor: Tensor

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, numpy_type, fortran_order, content = state
        if len(shape) > _MAX_DIMENSIONS or any(type(length) is not int or length < 0 for length in shape):
            raise ValueError(f"a NumPy array of shape {shape!r}")
        expected = math.prod(shape) * numpy_type.dtype.itemsize
        if not isinstance(content, bytes) or len(content) != expected:
            raise ValueError(f"a NumPy array of shape {list(shape)} that does not hold {expected:,} bytes")
        array = np.frombuffer(bytearray(content), numpy_type.dtype).reshape(shape, order="F" if fortran_order else "C")
        self.tensor = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


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


# (stand-in, name in the file); NumPy 2 renamed the module
NUMPY_STAND_INS: list[tuple[Any, str]] = [
    (NumpyType, "numpy.dtype"),
    (NumpyArray, "numpy.ndarray"),
    *(
        (stand_in, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for stand_in, name in ((_empty_array, "_reconstruct"), (_number, "scalar"))
    ),
]

# allowed beside tensors and plain values; DeiT stores its options in a Namespace
_HARMLESS_CLASSES: list[Any] = [argparse.Namespace, *NUMPY_STAND_INS]


def load_restricted(path: Path) -> Any:
    """Loads a file written by ``torch.save``; it may hold tensors, numbers, strings and containers of them.

    Raises:
        UserError: the file is damaged, or holds anything else; no code in it was executed.
    """
    try:
        with torch.serialization.safe_globals(_HARMLESS_CLASSES), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecation warnings about old file formats
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile pickle can raise anything
        raise UserError(explain_error(path, error)) from error


def explain_error(path: Path, error: Exception) -> str:
    """Returns a message for an error in reading a torch file."""
    text = str(error).strip()
    named = re.search(r"GLOBAL ([A-Za-z_]\w*(\.\w+)*)\s", text) if isinstance(error, pickle.UnpicklingError) else None
    if named or isinstance(error, NumpyRefusedError):
        what = named[1] if named else text
        return (
            f"{path} is refused: it holds Python objects ({what}) beside tensors, and loading these can run arbitrary "
            "code; no code in it was executed. Get the weights as .safetensors or, only if you trust the author of the "
            "file, convert them: safetensors.torch.save_file(torch.load(path, weights_only=False)[entry], new_path)"
        )
    lines = re.findall(r"WeightsUnpickler error: (.+)", text) or text.splitlines() or [type(error).__name__]
    return f"{path} is damaged or truncated ({lines[0]}); no code in it was executed; download or copy it again"
