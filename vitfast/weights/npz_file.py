"""Zip archives, and NumPy's ``.npz`` files, which are read without pickle."""

from __future__ import annotations

import math
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.lib import format as npy_format
from torch import Tensor

from vitfast.errors import UserError

# Weights hardly compress: even a file that mostly consists of a zeroed head stays below the ratio. The ratio is not
# checked for archives below the first limit.
_HARMLESS_BYTES = 256 << 20
_MAX_RATIO = 20


def check_archive(path: Path) -> list[str]:
    """Checks the unpacked size of a zip archive (``.npz``, or torch's format) and returns the names in it.

    Raises:
        UserError: the archive is damaged, or is a decompression bomb.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception as error:  # zipfile raises exceptions of many kinds
        raise UserError(
            f"{path} is damaged or truncated: its zip directory cannot be read ({error}); download or copy it again"
        ) from error
    size, unpacked = path.stat().st_size, sum(member.file_size for member in members)
    if unpacked > max(_HARMLESS_BYTES, _MAX_RATIO * size):
        raise UserError(
            f"{path} is refused as a decompression bomb: its {size:,} bytes would unpack to {unpacked:,}; nothing was "
            "unpacked; download it again from a source that you trust"
        )
    return [member.filename for member in members]


def read_npz_file(path: Path) -> dict[str, Tensor]:
    """Reads every array of an archive that passed ``check_archive``.

    Arrays of the two-byte void type are bfloat16, as JAX saves it.

    Raises:
        UserError: an array is damaged, holds Python objects, or is not numeric; the message names it.
    """
    tensors: dict[str, Tensor] = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            try:
                with archive.open(member) as file:
                    tensors[name] = _to_tensor(_read_array(file, member.file_size))
            except Exception as error:  # decompressors and the parser of headers raise exceptions of their own
                raise UserError(
                    f"{path}: array {name} cannot be read: {str(error) or repr(error)}; no code in it was executed; "
                    "download it again"
                ) from error
    return tensors


def _read_array(file: IO[bytes], size: int) -> np.ndarray[Any, Any]:
    """Reads a ``.npy`` of ``size`` bytes, after checking that its header describes exactly the bytes that follow."""
    version = npy_format.read_magic(file)
    read_header = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about headers written by Python 2: Google's files are from 2020
        shape, fortran_order, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("it holds pickled Python objects, which are refused")
    expected, available = math.prod(shape) * dtype.itemsize, size - file.tell()
    if expected != available or any(length < 0 for length in shape):
        raise ValueError(f"its header claims shape {list(shape)} in {expected:,} bytes, but there are {available:,}")
    content = bytearray(file.read(expected))
    if len(content) != expected or file.read(1):
        raise ValueError(f"it ends after {len(content):,} of {expected:,} bytes")
    array = np.frombuffer(content, dtype=dtype)
    return array.reshape(shape, order="F" if fortran_order else "C")


def _to_tensor(array: np.ndarray[Any, Any]) -> Tensor:
    if array.dtype == np.dtype("V2"):
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"it holds {array.dtype}, which is not numeric")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))
