"""The folder of a run and its human-readable files."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from tqdm import tqdm

import vitfast
from vitfast.device import cpu_model
from vitfast.errors import UserError, explain_os_error
from vitfast.files import atomic_file, open_append, open_regular, read_text
from vitfast.weights.save_weights import write_safetensors

CONFIG, ENVIRONMENT, METRICS, LOG, CURVES = "config.yaml", "environment.json", "metrics.jsonl", "log.txt", "curves.png"
NON_FINITE = "non_finite.json"

_PACKAGES = "torch torchvision timm numpy omegaconf safetensors torchmetrics tqdm matplotlib pillow".split()


class RunDirectory:
    """``config.yaml``, ``environment.json``, ``metrics.jsonl`` and ``log.txt`` of one run, and ``non_finite.json``.

    Created by ``create`` (a new run) or ``reopen`` (a resumed run). Until it is closed or the process ends, no other
    process can open the same run, where the system and the file system have locks.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # unbuffered: a line that a full disk rejects is lost, instead of failing again with the next line or on close
        self._log = open_append(path / LOG)
        if not _lock(self._log):
            self._log.close()
            raise UserError(
                f"the run {path} is in use: another process is training in it; wait until it ends, or stop it first "
                "(a new run needs another run_dir)"
            )

    @classmethod
    def create(cls, path: str | os.PathLike[str] | None, recipe: str) -> RunDirectory:
        """Creates the folder of a new run.

        Args:
            path: the folder; None: ``runs/<recipe>-<timestamp>``.
            recipe: name or file of the recipe.

        Raises:
            UserError: if the folder is not empty, cannot be created, or is in use.
        """
        chosen = Path(path) if path is not None else _default_path(recipe)
        with explain_os_error(f"run_dir={chosen} cannot be created", "; choose another run_dir"):
            if chosen.exists() and (not chosen.is_dir() or any(chosen.iterdir())):
                what = "is not empty" if chosen.is_dir() else "is a file"
                raise UserError(
                    f"run_dir={chosen} {what}, and a run overwrites nothing; choose another run_dir, "
                    f"or resume the run in it with train.resume={chosen}"
                )
            chosen.mkdir(parents=True, exist_ok=True)
            run = cls(chosen)
        return run

    @classmethod
    def reopen(cls, path: str | os.PathLike[str]) -> RunDirectory:
        """Opens the folder of an existing run.

        Raises:
            UserError: if it cannot be written, or is in use.
        """
        with explain_os_error(f"the run {path} cannot be resumed"):
            run = cls(Path(path))
        return run

    def close(self) -> None:
        """Closes the log file, which ends the lock."""
        self._log.close()

    def log(self, text: str, *, show: bool = True) -> None:
        """Appends a line to ``log.txt`` with the time, and prints it on stderr unless ``show`` is False.

        A full disk stops neither the run nor the message on stderr.
        """
        if show:
            tqdm.write(text, file=sys.stderr)  # keeps a progress bar intact
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        with suppress(OSError):
            self._log.write("".join(f"{stamp}  {line}\n" for line in text.splitlines() or [""]).encode())

    def warn(self, text: str) -> None:
        """Logs a warning."""
        self.log(f"warning: {text}")

    def write_text(self, name: str, text: str) -> None:
        """Writes a file of the run atomically and durably: a reader sees the old or the new content, never a mix.

        Raises:
            OSError: if it cannot be written; the old content is intact.
        """
        with atomic_file(self.path / name) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def write_environment(self, environment: dict[str, Any]) -> None:
        """Writes ``environment.json``: the environment of the start, and under ``resumed`` those of each resume."""
        file = self.path / ENVIRONMENT
        try:
            first = json.loads(read_text(file))
            content = {**first, "resumed": [*first.get("resumed", []), environment]}
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            content = environment
        self.write_text(ENVIRONMENT, json.dumps(content, indent=2) + "\n")

    def write_non_finite(self, record: dict[str, Any]) -> Path | None:
        """Writes ``non_finite.json``: the step with a non-finite loss or gradient, and its images.

        Returns:
            The file, or None if it could not be written.
        """
        try:
            self.write_text(NON_FINITE, json.dumps(record, indent=2) + "\n")
        except OSError as error:
            self.warn(f"{NON_FINITE} could not be written: {error}")
            return None
        return self.path / NON_FINITE

    def write_diagnostics(self, tensors: dict[str, Tensor], rank: int) -> None:
        """Writes tensors of a rank that explain a non-finite loss to ``non_finite_rank0.safetensors``, if any."""
        if not tensors:
            return
        try:
            write_safetensors(tensors, self.path / f"non_finite_rank{rank}.safetensors", {})
        except OSError as error:
            self.warn(f"the scores of rank {rank} could not be written: {error}")

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Appends a row to ``metrics.jsonl``; a non-finite value becomes null, because JSON has no NaN.

        Raises:
            OSError: if it cannot be written; the file is unchanged.
        """
        data = _metrics_line(row)
        with open_append(self.path / METRICS) as file:
            before = os.fstat(file.fileno()).st_size
            try:
                while data:
                    data = data[file.write(data) :]
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    file.truncate(before)
                raise

    def restore_metrics(self, rows: list[dict[str, Any]]) -> None:
        """Makes ``metrics.jsonl`` consist of ``rows``, those of a checkpoint, whatever it contained before.

        Raises:
            UserError: if it cannot be written.
        """
        data = b"".join(map(_metrics_line, rows))
        with explain_os_error(f"{self.path / METRICS} cannot be restored from the checkpoint", "; fix this first"):
            if data != self._metrics_bytes():
                with atomic_file(self.path / METRICS) as temporary:
                    temporary.write_bytes(data)

    def _metrics_bytes(self) -> bytes:
        try:
            with open_regular(self.path / METRICS) as file:
                return file.read()
        except FileNotFoundError:
            return b""


class FollowedRun(RunDirectory):
    """The folder of a run on ranks other than 0: they read from it; writing and logging are no-ops."""

    def __init__(self, path: Path, rank: int) -> None:
        self.path = path
        self.rank = rank

    def warn(self, text: str) -> None:
        print(f"warning: rank {self.rank}: {text}", file=sys.stderr, flush=True)

    def write_non_finite(self, record: dict[str, Any]) -> Path | None:
        return self.path / NON_FINITE

    def _ignore(self, *_: Any, **__: Any) -> None:
        """Does nothing."""

    close = log = write_text = write_environment = append_metrics = restore_metrics = _ignore


def _metrics_line(row: dict[str, Any]) -> bytes:
    non_finite = [key for key, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
    return (json.dumps({**row, **dict.fromkeys(non_finite)}) + "\n").encode()


def _lock(file: BinaryIO) -> bool:
    """Locks a file that is open for writing; returns False if another process holds its lock.

    The system ends the lock with the process, however that ends. A process that it forks, such as a worker of the data
    loader, does not inherit the lock (``flock`` would be inherited).
    """
    try:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except (ImportError, OSError):  # Windows, or a file system without locks
        pass
    return True


def _default_path(recipe: str) -> Path:
    stem = f"{Path(recipe).stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = Path("runs") / stem, 2
    while path.exists():
        path, number = Path("runs") / f"{stem}-{number}", number + 1
    return path


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Returns versions, machine, threads, device and build information as JSON values."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {"vitfast": vitfast.__version__} | {name: _version(name) for name in _PACKAGES},
        "cpu": cpu_model(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
        "build_info": vitfast.build_info(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
