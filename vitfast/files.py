"""Atomic and durable writes, reads of regular files only, and SHA-256."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

# without O_NONBLOCK, opening a FIFO waits for its other end, and no signal handler of Python ends that
_NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
_READ = os.O_RDONLY | _NO_WAIT | getattr(os, "O_BINARY", 0)


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a file for reading bytes, without waiting for it.

    Every file of a user is opened by this function or was checked by ``Path.is_file``: reading a FIFO or a terminal may
    never return, and a device such as ``/dev/zero`` never ends.

    Raises:
        OSError: if it cannot be opened, or is not a regular file.
    """
    # FileIO itself refuses folders
    file = open(path, "rb", opener=lambda name, _: os.open(name, _READ))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is a FIFO, a socket or a device, not a regular file", os.fspath(path))
    return file


def open_append(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a file for appending bytes, unbuffered; a FIFO that nobody reads is an error instead of a wait.

    Raises:
        OSError: if it cannot be opened.
    """
    return open(path, "ab", buffering=0, opener=lambda name, flags: os.open(name, flags | _NO_WAIT, 0o666))


def read_text(path: str | os.PathLike[str]) -> str:
    """Returns the content of a regular file as UTF-8 text.

    Raises:
        OSError: as ``open_regular``.
        UnicodeDecodeError: if it is not UTF-8.
    """
    with open_regular(path) as file:
        return file.read().decode("utf-8")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write; at the end it replaces ``path``, durably. An error leaves ``path`` as it is."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        yield temporary
        flush_to_disk(temporary)
        os.replace(temporary, path)
        flush_to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    """Flushes a file, or a folder's directory entries, to disk."""
    folder = path.is_dir()
    if folder and not hasattr(os, "O_DIRECTORY"):  # Windows opens no folders, and flushes only files open for writing
        return
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of_file(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
