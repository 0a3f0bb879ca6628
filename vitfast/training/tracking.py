"""The figures of a run in TensorBoard and Weights & Biases, never at the run's expense."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, cast

from vitfast.config.schema import Config
from vitfast.runs.run_directory import RunDirectory

_NOT_FIGURES = ("split", "epoch", "step")


class _Backend(Protocol):
    def log(self, figures: dict[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class Tracking:
    """Passes figures on to those that ``track.*`` names; one that fails is left with a warning.

    ``metrics.jsonl`` is written without it.

    Args:
        config: of the run.
        run: its folder; TensorBoard's files lie in ``tensorboard``, those of Weights & Biases in ``wandb``.
        first_step: steps that are done; what TensorBoard has of later ones, from before a resume, is hidden.
    """

    def __init__(self, config: Config, run: RunDirectory, first_step: int) -> None:
        self._run = run
        self._backends: dict[str, _Backend] = {}
        if config.track.tensorboard:
            self._try("track.tensorboard", lambda: self._add("track.tensorboard", _TensorBoard(run.path, first_step)))
        if config.track.wandb != "off":
            self._try("track.wandb", lambda: self._add("track.wandb", _WeightsAndBiases(config, run.path)))

    def log(self, line: dict[str, Any]) -> None:
        """Passes on a line of ``metrics.jsonl``, or what is known within an epoch (``split`` then says so)."""
        figures: dict[str, float] = {}
        for key, value in line.items():
            if key in _NOT_FIGURES:
                continue
            values = {key: value} if not isinstance(value, list) else {f"{key}_{n}": v for n, v in enumerate(value, 1)}
            figures |= {f"{line['split']}/{name}": one for name, one in values.items() if math.isfinite(one)}
        for name, backend in list(self._backends.items()):
            self._try(name, lambda backend=backend: backend.log(figures, line["step"]))  # type: ignore[misc]

    def close(self) -> None:
        """Waits until everything is written."""
        for name, backend in list(self._backends.items()):
            self._try(name, backend.close)

    def _add(self, name: str, backend: _Backend) -> None:
        self._backends[name] = backend

    def _try(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # theirs may raise anything, and a tracker is no reason to lose a run
            self._backends.pop(name, None)
            missing = isinstance(error, ImportError)
            package = name.removeprefix("track.")
            hint = f"; pip install {package}" if missing else ""
            self._run.warn(f"{name} does not work: {error}{hint}; training goes on without it")


class _TensorBoard:
    def __init__(self, run_dir: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step + 1 if first_step else None)

    def log(self, figures: dict[str, float], step: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    def __init__(self, config: Config, run_dir: Path) -> None:
        import wandb  # type: ignore[import-not-found, unused-ignore]

        # the same folder is the same run: one that goes on is not shown as two
        identity = hashlib.blake2b(str(run_dir.resolve()).encode(), digest_size=8).hexdigest()
        self._run = wandb.init(
            project=config.track.project,
            name=run_dir.name,
            id=identity,
            resume="allow",
            mode=cast(Any, config.track.wandb),
            dir=str(run_dir),
            config=asdict(config),
            settings=wandb.Settings(console="off", silent=True, init_timeout=60),
        )

    def log(self, figures: dict[str, float], step: int) -> None:
        self._run.log(figures, step=step)

    def close(self) -> None:
        self._run.finish()
