"""NumPy's numbers and arrays inside a pickle, rebuilt by functions of our own.

The released Dynamic Vision Transformers have such numbers beside their weights. NumPy's own functions are not let in:
they allocate what a file claims, and believe whatever it says of a type. The stand-ins below take plain numbers only,
and no more of them than their bytes hold.
"""

from __future__ import annotations

import math
import sys
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

_NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
_BYTE_ORDERS: dict[str, Literal["<", ">", "|"]] = {
    "<": "<",
    ">": ">",
    "|": "|",
    "=": "<" if sys.byteorder == "little" else ">",
}
_MAX_DIMENSIONS = 8


class NumpyRefusedError(ValueError):
    """An array or a number of something else than plain numbers, of Python objects for example."""


class NumpyType:
    """Stands in for ``numpy.dtype``.

    Args:
        code: kind and bytes, ``"f8"`` for example.
        align: not used.
        copy: not used.

    Raises:
        NumpyRefusedError: it is no type of plain numbers.
    """

    def __init__(self, code: str, align: object = False, copy: object = False) -> None:
        if code not in _NUMBERS:
            raise NumpyRefusedError(f"numpy.dtype({code!r})")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(_BYTE_ORDERS[state[1]])


class NumpyArray:
    """Stands in for ``numpy.ndarray``.

    Attributes:
        tensor: its numbers.
    """

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
    """Stands in for ``_reconstruct``: what the array holds comes with its state."""
    if array_type is not NumpyArray:
        raise ValueError("a NumPy array of another class")
    return NumpyArray()


def _number(numpy_type: NumpyType, content: bytes) -> float | int | bool:
    """Stands in for ``scalar``."""
    if not isinstance(content, bytes) or len(content) != numpy_type.dtype.itemsize:
        raise ValueError(f"a NumPy number that does not hold {numpy_type.dtype.itemsize} bytes")
    number: float | int | bool = np.frombuffer(content, numpy_type.dtype)[0].item()
    return number


# (what stands in, the name in the file); NumPy 2 renamed the module
NUMPY_STAND_INS: list[tuple[Any, str]] = [
    (NumpyType, "numpy.dtype"),
    (NumpyArray, "numpy.ndarray"),
    *(
        (stand_in, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for stand_in, name in ((_empty_array, "_reconstruct"), (_number, "scalar"))
    ),
]
