"""Learning curves and experiment trackers: ``curves.png``, TensorBoard and Weights & Biases."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

from vitfast.config.schema import Config
from vitfast.figure import new_figure, save_figure
from vitfast.runs.run_directory import RunDirectory
from vitfast.training.training_state import accuracy_of

_COLOURS = {"train": "tab:blue", "val": "tab:orange", "test": "tab:green"}
_NOT_METRICS = ("split", "epoch", "step")


# logs metrics at a step; writes everything and ends
_Backend = tuple[Callable[[dict[str, float], int], object], Callable[[], object]]


class Tracking:
    """Passes metrics to the trackers of ``track.*``; a tracker that fails is dropped with a warning.

    Args:
        config: of the run.
        run: its folder; TensorBoard's files are in ``tensorboard``, those of Weights & Biases in ``wandb``.
        first_step: completed steps; TensorBoard hides later ones, which were logged before a resume.
        enabled: False logs nothing: for all ranks but one.
    """

    def __init__(self, config: Config, run: RunDirectory, first_step: int, *, enabled: bool) -> None:
        self._run = run
        self._backends: dict[str, _Backend] = {}
        if enabled and config.track.tensorboard:
            self._add("track.tensorboard", lambda: _tensorboard(run.path, first_step))
        if enabled and config.track.wandb != "off":
            self._add("track.wandb", lambda: _weights_and_biases(config, run.path))

    def log(self, line: dict[str, Any]) -> None:
        """Logs a line of ``metrics.jsonl``, or metrics within an epoch (with another ``split``)."""
        metrics: dict[str, float] = {}
        for key, value in line.items():
            if key in _NOT_METRICS:
                continue
            values = {key: value}
            if isinstance(value, list):
                values = {f"{key}_{n}": one for n, one in enumerate(value, 1)}
            elif isinstance(value, dict):
                values = {f"{key}_{name}": one for name, one in value.items()}
            metrics |= {f"{line['split']}/{name}": one for name, one in values.items() if math.isfinite(one)}
        for name, backend in list(self._backends.items()):
            self._try(name, partial(backend[0], metrics, line["step"]))

    def close(self) -> None:
        """Waits until everything is written."""
        for name, backend in list(self._backends.items()):
            self._try(name, backend[1])

    def _add(self, name: str, create: Callable[[], _Backend]) -> None:
        self._try(name, lambda: self._backends.update({name: create()}))

    def _try(self, name: str, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # a tracker may raise anything, and must not end the run
            self._backends.pop(name, None)
            hint = f"; pip install {name.removeprefix('track.')}" if isinstance(error, ImportError) else ""
            self._run.warn(f"{name} does not work: {error}{hint}; training continues without it")


def _tensorboard(run_dir: Path, first_step: int) -> _Backend:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step + 1 if first_step else None)

    def log(metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return log, writer.close


def _weights_and_biases(config: Config, run_dir: Path) -> _Backend:
    import wandb  # type: ignore[import-not-found, unused-ignore]

    # one identity per folder, so that a resumed run is not shown as two
    identity = hashlib.blake2b(str(run_dir.resolve()).encode(), digest_size=8).hexdigest()
    run = wandb.init(
        project=config.track.project,
        name=run_dir.name,
        id=identity,
        resume="allow",
        mode=cast(Any, config.track.wandb),
        dir=str(run_dir),
        config=asdict(config),
        settings=wandb.Settings(console="off", silent=True, init_timeout=60),
    )
    return run.log, run.finish


def draw_curves(metrics: Iterable[dict[str, Any]], path: str | os.PathLike[str], title: str) -> None:
    """Plots loss and top-1 accuracy over the epochs, and writes the figure atomically.

    The accuracy of training without labels is that of the kNN classifier, k=20. The train curve is the mean over an
    epoch of augmented images, while the weights change; it may be worse than the validation curve. The test result is a
    star. No display is needed.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    lines = [{**row, "top1": accuracy_of(row)} for row in metrics]
    accuracy = "kNN top-1 accuracy, k=20" if any("knn" in row for row in lines) else "top-1 accuracy"
    figure = new_figure(10, 4.2)
    figure.subplots_adjust(left=0.07, right=0.985, bottom=0.12, top=0.9, wspace=0.2)
    figure.suptitle(title)
    for axes, key, label in zip(figure.subplots(1, 2), ("loss", "top1"), ("loss", accuracy), strict=True):
        for split, colour in _COLOURS.items():
            _draw_split(axes, [line for line in lines if line["split"] == split], key, split, colour)
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        if axes.has_data():
            axes.legend(frameon=False)
        if key == "top1":
            axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))
            axes.set_ylim(top=1.01)
    save_figure(figure, path)


def _draw_split(axes: Any, lines: list[dict[str, Any]], key: str, split: str, colour: str) -> None:
    points = [(line["epoch"], line[key]) for line in lines if line.get(key) is not None]
    if not points:
        return
    epochs, values = zip(*points, strict=True)
    last = f"{values[-1]:.2%}" if key == "top1" else f"{values[-1]:.3f}"
    if split == "test" and len(points) == 1:
        axes.plot(epochs[-1:], values[-1:], "*", markersize=13, color=colour, label=f"test {last}", zorder=3)
        return
    label = f"{split} {last}"
    if split == "val" and key == "top1":
        best = max(range(len(values)), key=values.__getitem__)
        label += f", best {values[best]:.2%} in epoch {epochs[best]}"
        axes.axhline(values[best], color=colour, linestyle=":", linewidth=1)
    # markers for few epochs: a line through one point would be invisible
    axes.plot(epochs, values, marker="o" if len(points) <= 30 else "", markersize=3, color=colour, label=label)
