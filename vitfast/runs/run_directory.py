"""The folder of a run and the files in it that people read."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from vitfast.errors import UserError

CONFIG, ENVIRONMENT, METRICS, LOG, CURVES = "config.yaml", "environment.json", "metrics.jsonl", "log.txt", "curves.png"
NON_FINITE = "non_finite.json"


class RunDirectory:
    """``config.yaml``, ``environment.json``, ``metrics.jsonl`` and ``log.txt`` of one run, and ``non_finite.json``.

    Make one with ``create`` (a new run) or ``reopen`` (a run that goes on).

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._echo: Any = lambda line: print(line, file=sys.stderr, flush=True)
        # Without a buffer: what a full disk refuses is gone, rather than in the way of the next line and of closing.
        self._log: BinaryIO = open(path / LOG, "ab", buffering=0)

    @classmethod
    def create(cls, path: str | os.PathLike[str] | None, recipe: str) -> RunDirectory:
        """Makes the folder of a new run.

        Args:
            path: the folder; None makes ``runs/<recipe>-<timestamp>``.
            recipe: name or file of the recipe.

        Raises:
            UserError: if the folder is not empty, or cannot be made.
        """
        chosen = Path(path) if path is not None else _default_path(recipe)
        try:
            if chosen.exists() and (not chosen.is_dir() or any(chosen.iterdir())):
                what = "is not empty" if chosen.is_dir() else "is a file"
                raise UserError(
                    f"run_dir={chosen} {what}, and a run overwrites nothing; give another run_dir, "
                    f"or continue a run in it with train.resume={chosen}"
                )
            chosen.mkdir(parents=True, exist_ok=True)
            return cls(chosen)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"run_dir={chosen} cannot be made: {reason}; give another run_dir") from error

    @classmethod
    def reopen(cls, path: str | os.PathLike[str]) -> RunDirectory:
        """Opens the folder of an existing run.

        Raises:
            UserError: if it cannot be written.
        """
        try:
            return cls(Path(path))
        except OSError as error:
            raise UserError(f"the run {path} cannot be continued: {error.strerror or error}") from error

    def close(self) -> None:
        """Closes the log file."""
        self._log.close()

    def echo_through(self, write: Any) -> None:
        """Sends what ``log`` shows through ``write(line)``, so that a progress bar stays whole."""
        self._echo = write

    def log(self, text: str, *, show: bool = True) -> None:
        """Appends a line to ``log.txt``, with the time, and shows it on stderr unless ``show`` is False.

        A disk that is full stops neither the run nor the message on the screen.
        """
        if show:
            self._echo(text)
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        with suppress(OSError):
            self._log.write("".join(f"{stamp}  {line}\n" for line in text.splitlines() or [""]).encode())

    def warn(self, text: str) -> None:
        """Logs a warning."""
        self.log(f"warning: {text}")

    def write_text(self, name: str, text: str) -> None:
        """Writes a file of the run as a whole: a reader sees the old one or the new one, even after a power failure.

        Raises:
            OSError: if it cannot be written; the old one is intact.
        """
        self._replace(name, text.encode())

    def _replace(self, name: str, data: bytes) -> None:
        temporary = self.path / f".{name}.writing"
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path / name)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            raise

    def write_environment(self, environment: dict[str, Any]) -> None:
        """Writes ``environment.json``: what the run started on, and under ``resumed`` what it was continued on."""
        file = self.path / ENVIRONMENT
        try:
            first = json.loads(file.read_text(encoding="utf-8"))
            content = {**first, "resumed": [*first.get("resumed", []), environment]}
        except (OSError, ValueError, AttributeError):
            content = environment
        self.write_text(ENVIRONMENT, json.dumps(content, indent=2) + "\n")

    def write_non_finite(self, record: dict[str, Any]) -> Path | None:
        """Writes ``non_finite.json``: the step that could not be done, and the images that it was about.

        Returns:
            The file, or None if it could not be written.
        """
        try:
            self.write_text(NON_FINITE, json.dumps(record, indent=2) + "\n")
        except OSError as error:
            self.log(f"warning: {NON_FINITE} could not be written: {error}")
            return None
        return self.path / NON_FINITE

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Appends a line to ``metrics.jsonl``; a value that is not finite becomes null, as JSON has no NaN.

        Raises:
            OSError: if it cannot be written; no part of the line stays.
        """
        odd = [key for key, value in line.items() if isinstance(value, float) and not math.isfinite(value)]
        data = (json.dumps({**line, **dict.fromkeys(odd)}) + "\n").encode()
        with open(self.path / METRICS, "ab", buffering=0) as file:
            before = os.fstat(file.fileno()).st_size
            try:
                while data:
                    data = data[file.write(data) :]
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    file.truncate(before)
                raise

    def read_metrics(self) -> list[dict[str, Any]]:
        """Returns the lines of ``metrics.jsonl``; one that is damaged, or that a kill cut short, is left out."""
        file = self.path / METRICS
        lines: list[dict[str, Any]] = []
        for text in file.read_bytes().split(b"\n") if file.exists() else []:
            with suppress(ValueError):
                lines.append(json.loads(text))
        return lines

    def keep_metrics(self, count: int) -> None:
        """Cuts ``metrics.jsonl`` down to its first ``count`` lines: those that the checkpoint knew.

        Raises:
            UserError: if it cannot be written.
        """
        file = self.path / METRICS
        try:
            data = file.read_bytes() if file.exists() else b""
            *whole, _ = data.split(b"\n")
            kept = b"".join(line + b"\n" for line in whole[:count])
            if kept != data:
                self._replace(METRICS, kept)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{file} cannot be cut back to the checkpoint: {reason}; mend that first") from error


class FollowedRun(RunDirectory):
    """The folder of a run as the other ranks see it: they read in it, and leave writing and speaking to the main one.

    Args:
        path: the folder that the main rank made.
        rank: whose warnings these are, which only it can give.
    """

    def __init__(self, path: Path, rank: int) -> None:
        self.path = path
        self.rank = rank

    def warn(self, text: str) -> None:
        """Shows a warning on stderr."""
        print(f"warning: rank {self.rank}: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Does nothing."""

    def log(self, text: str, *, show: bool = True) -> None:
        """Does nothing."""

    def write_text(self, name: str, text: str) -> None:
        """Does nothing."""

    def write_environment(self, environment: dict[str, Any]) -> None:
        """Does nothing."""

    def write_non_finite(self, record: dict[str, Any]) -> Path | None:
        """Names the file, which the main rank writes with the images of all of them."""
        return self.path / NON_FINITE

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Does nothing."""

    def keep_metrics(self, count: int) -> None:
        """Does nothing."""


def _default_path(recipe: str) -> Path:
    stem = f"{Path(recipe).stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = Path("runs") / stem, 2
    while path.exists():
        path, number = Path("runs") / f"{stem}-{number}", number + 1
    return path
