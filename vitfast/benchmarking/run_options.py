"""The options that all benchmarks share."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitfast.config import option
from vitfast.errors import UserError


def seconds_option(default: float) -> Any:
    """Declares the option for the time budget with another default."""
    return option(default, "time for all measurements together; building and checking come on top", above=0)


def batch_option(*default: int) -> Any:
    """Declares the option for batch sizes."""
    return option(list(default), "images per batch, one or more sizes: batch=1,8", minimum=1)


@dataclass(kw_only=True)
class RunOptions:
    """Options of all benchmarks: how long to measure, and where to write the results."""

    seconds: float = seconds_option(60.0)
    stop_after: float | None = option(
        None, "seconds after which no table begins, building included; resume=true continues", above=0
    )
    threads: int | None = option(None, "CPU threads; null: torch's choice", minimum=1)
    json: str | None = option(None, "file for the results as JSON; the tables are written beside it, as .md")
    resume: bool = option(False, "continue an interrupted run: keep the results in json=, and measure the rest")

    def check(self, prefix: str = "") -> None:
        """Raises UserError before anything is measured: the results cannot be written, or options contradict."""
        check_json_path(self.json)

    def reported(self) -> dict[str, Any]:
        """The options that are written with the results; overridden to leave out folders of this machine."""
        return asdict(self)


@dataclass(kw_only=True)
class ModelRunOptions(RunOptions):
    """Options of all benchmarks of whole models."""

    batch: list[int] = batch_option(8)
    device: str = option("auto", "auto: a GPU if there is one", choices=["auto", "cpu", "cuda"])


def check_json_path(path: str | None) -> None:
    """Raises UserError if ``path`` is given and no ``.json`` file can be created there."""
    if path is None:
        return
    target = Path(path)
    if target.suffix != ".json":
        raise UserError(f"json={path} must end in .json; the tables are written beside it, as .md")
    if target.is_dir():
        raise UserError(f"json={path} is a folder; give a file")
    if not target.parent.is_dir():
        raise UserError(f"json={path}: there is no folder {target.parent}; create it first")
