"""The options that benchmarks have in common."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitfast.benchmarking.word_list import parse_counts
from vitfast.config import option
from vitfast.errors import UserError


def seconds_option(default: float) -> Any:
    """Declares how long a benchmark measures, in seconds, where that is not a minute."""
    return option(default, "time for all measurements together; building and checking come on top", above=0)


@dataclass(kw_only=True)
class RunOptions:
    """How long a benchmark measures, and where its results go."""

    seconds: float = seconds_option(60.0)
    stop_after: float | None = option(
        None, "seconds after which no comparison begins, building included; resume=true goes on", above=0
    )
    threads: int | None = option(None, "CPU threads; null: torch's choice", minimum=1)
    json: str | None = option(None, "file for the results as JSON; the tables go beside it, as .md")
    resume: bool = option(False, "go on with an interrupted run: keep what json= has, and measure the rest")

    def check(self, prefix: str = "") -> None:
        """Checks what limits cannot say, so that a mistake is told before anything is measured.

        Raises:
            UserError: the results cannot be written, or a value is not possible.
        """
        check_json_path(self.json)

    def reported(self) -> dict[str, Any]:
        """The options that the results tell: without folders, which only this machine has."""
        return asdict(self)


@dataclass(kw_only=True)
class ModelRunOptions(RunOptions):
    """What benchmarks of whole models have in common, too."""

    batch: str = option("8", "images in a batch, one or more sizes: batch=1,8")
    device: str = option("auto", "auto: a GPU if there is one", choices=["auto", "cpu", "cuda"])

    def check(self, prefix: str = "") -> None:
        """As ``RunOptions.check``."""
        super().check(prefix)
        self.batches()

    def batches(self) -> list[int]:
        """The batch sizes.

        Raises:
            UserError: one is no whole number above 0.
        """
        return parse_counts("batch", self.batch, minimum=1)


def check_json_path(path: str | None) -> None:
    """Raises UserError unless a ``.json`` file can be made there; None is none."""
    if path is None:
        return
    target = Path(path)
    if target.suffix != ".json":
        raise UserError(f"json={path} must end in .json; the tables are written beside it, with .md in its place")
    if target.is_dir():
        raise UserError(f"json={path} is a folder; give a file")
    if not target.parent.is_dir():
        raise UserError(f"json={path}: there is no folder {target.parent}; create it first")
