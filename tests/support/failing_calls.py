"""Calls of the operating system that fail on request, below one folder: see ``failing_calls.c``."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
READS, GROWS, CHANGES, CLOSES = 1, 2, 4, 8


def build_failing_calls(folder: Path) -> Path | None:
    """Compiles the library, which a process has to preload (``LD_PRELOAD``); None without a compiler."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None
    library = folder / "failing_calls.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True, timeout=60)
    return library


class FailingCalls:
    """The library in a process that has preloaded it."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(os.environ["LD_PRELOAD"])
        self._library.failed_call.restype = ctypes.c_char_p

    @contextmanager
    def fail(self, below: Path, kinds: int, number: int, error: int, *, for_ever: bool = False) -> Iterator[None]:
        """Lets the ``number``-th call of these kinds below a folder fail with an errno, or with 0 kill the process."""
        self._library.fail_calls(os.fsencode(below), kinds, number, error, int(for_ever))
        try:
            yield
        finally:
            self._library.fail_calls(b"", 0, 0, 0, 0, 0)

    def failed(self) -> str:
        """The name of the function that failed first, or ``""``; to be asked within the context."""
        return self._library.failed_call().decode()
