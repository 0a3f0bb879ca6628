"""NumPy's ``.npz`` files, read without pickle."""

from __future__ import annotations

import math
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.lib import format as npy_format
from torch import Tensor

from vitfast.errors import UserError


def read_npz_file(path: Path) -> dict[str, Tensor]:
    """Reads every array of an archive that ``check_archive`` has passed.

    Arrays of the void type with two bytes are bfloat16, as JAX saves it.

    Raises:
        UserError: an array is damaged, holds Python objects, or is no array of numbers; the message names it.
    """
    tensors: dict[str, Tensor] = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            try:
                with archive.open(member) as file:
                    tensors[name] = _to_tensor(_read_array(file, member.file_size))
            except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, TypeError, RuntimeError) as error:
                raise UserError(f"{path}: array {name} cannot be read: {error}; nothing in it was executed") from error
    return tensors


def _read_array(file: IO[bytes], size: int) -> np.ndarray[Any, Any]:
    """Reads a ``.npy`` of ``size`` bytes, after its header was found to promise exactly what follows it."""
    version = npy_format.read_magic(file)
    read_header = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of headers that Python 2 wrote: Google's files are from 2020
        shape, fortran_order, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("it holds pickled Python objects, which are refused")
    expected, there = math.prod(shape) * dtype.itemsize, size - file.tell()
    if expected != there or any(length < 0 for length in shape):
        raise ValueError(f"its header promises shape {list(shape)} in {expected:,} bytes, there are {there:,}")
    content = bytearray(file.read(expected))
    if len(content) != expected or file.read(1):
        raise ValueError(f"it ends after {len(content):,} of {expected:,} bytes; download or copy the file again")
    array = np.frombuffer(content, dtype=dtype)
    return array.reshape(shape, order="F" if fortran_order else "C")


def _to_tensor(array: np.ndarray[Any, Any]) -> Tensor:
    if array.dtype == np.dtype("V2"):
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"it holds {array.dtype}, no numbers")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))
