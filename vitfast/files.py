"""fsync and SHA-256 helpers."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def flush_to_disk(path: Path) -> None:
    """Flushes a file or folder (its directory entries) to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of_file(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
