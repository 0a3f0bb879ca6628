"""The end of a run: its results, sample images, and the commands to try next."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torchvision.transforms.v2.functional import to_pil_image

from vitfast.config.schema import Config
from vitfast.data import ImageDataset
from vitfast.evaluation.image_files import restore_pixels
from vitfast.evaluation.knn import KNN_PROTOCOLS
from vitfast.runs.run_directory import CONFIG, CURVES
from vitfast.text_table import percent, text_table
from vitfast.training.training_state import TrainingState

_HEADERS = ("loss", "top-1", "top-5", *(f"kNN {name}" for name in KNN_PROTOCOLS), "images/s")


def result_table(metrics: dict[str, Any], state: TrainingState, ema_decay: float | None, seconds: float) -> str:
    """Formats the results of a run."""
    cells = {split: _cells(one) for split, one in metrics.items()}
    headers = [name for name in _HEADERS if any(name in one for one in cells.values())]
    rows = [(split, *(one.get(name, "") for name in headers)) for split, one in cells.items()]
    lines = [text_table(("split", *headers), rows)]
    evaluated = [split for split in ("val", "test") if split in metrics]
    if evaluated:
        weights = "the weights of the last step"
        if ema_decay is not None:
            weights = f"averaged weights (EMA, decay {ema_decay:g})"
        lines.append(f"{' and '.join(evaluated)}: measured with {weights}.")
    if state.best_top1 is not None:
        kept = f"kept as checkpoint_{state.best_step:06d}, which the commands below use"
        lines.append(f"Best val top-1: {percent(state.best_top1)}, {kept}.")
    if "test" not in metrics:
        lines.append("The data have no test split.")
    minutes, rest = divmod(round(seconds), 60)
    lines.append(f"Time: {minutes} min {rest} s." if minutes else f"Time: {rest} s.")
    return "\n".join(lines)


def describe_metrics(metrics: dict[str, Any]) -> list[str]:
    """Returns the metrics of a split as phrases for the log."""
    parts = [f"loss {metrics['loss']:.4f}"] if "loss" in metrics else []
    parts += [f"top-1 {metrics['top1']:7.2%}"] if "top1" in metrics else []
    return parts + [f"kNN {name} {accuracy:.2%}" for name, accuracy in metrics.get("knn", {}).items()]


def _cells(metrics: dict[str, Any]) -> dict[str, str]:
    """Returns the formatted metrics of a split by header."""
    cells = {"loss": f"{metrics['loss']:.4f}"} if "loss" in metrics else {}
    cells |= {name: percent(metrics[key]) for name, key in (("top-1", "top1"), ("top-5", "top5")) if key in metrics}
    cells |= {f"kNN {name}": percent(accuracy) for name, accuracy in metrics.get("knn", {}).items()}
    return {**cells, "images/s": f"{metrics['images_per_s']:,.0f}"}


def next_commands(config: Config, run_dir: Path, sample: Path | None, splits: Collection[str]) -> str:
    """Lists commands to try after a run whose data have ``splits``, quoted for the shell."""
    run, seed = shlex.quote(str(run_dir)), config.seed + 1
    again = shlex.quote(str(run_dir.with_name(f"{run_dir.name}-seed{seed}")))
    own_images = "recipe=vit_small_cifar10_32px data.dataset=image_folder data.root=ROOT"
    split = "" if "test" in splits else f" split={'val' if 'val' in splits else 'train'}"
    commands = [("evaluate it in detail", f"evaluate checkpoint={run}{split}")]
    if config.task == "swav":
        commands = [
            ("evaluate its features", f"evaluate checkpoint={run}{split} probe=linear"),
            ("fine-tune it", f"train recipe=finetune model.checkpoint={run} {_data_options(config)}"),
        ]
    elif sample is not None:
        commands.append(("classify images", f"predict checkpoint={run} images={shlex.quote(str(sample))}"))
    if config.schedule.steps is None:  # or else it may have ended within an epoch and cannot be extended
        longer = f"schedule.epochs={2 * config.schedule.epochs}"
        commands.append(("train it for longer", f"train train.resume={run} {longer}"))
    commands += [
        (
            "repeat it with another seed",
            f"train recipe={shlex.quote(str(run_dir / CONFIG))} run_dir={again} seed={seed}",
        ),
        ("train a small model on your images ROOT/train/CLASS/*", f"train {own_images}"),
        ("list all options", "train --help"),
    ]
    lines = [f"Everything is in {run_dir}: {CURVES}, metrics.jsonl, log.txt, checkpoints. Next:"]
    for purpose, command in commands:
        lines += [f"  # {purpose}", f"  {_python_command()} -m vitfast.{command}"]
    return "\n".join(lines)


def _data_options(config: Config) -> str:
    root = "" if config.data.root is None else f" data.root={shlex.quote(config.data.root)}"
    return f"data.dataset={config.data.dataset}{root}"


def resume_command(run_dir: Path) -> str:
    """The command that resumes a run."""
    return f"{_python_command()} -m vitfast.train train.resume={shlex.quote(str(run_dir))}"


def _python_command() -> str:
    """``python`` or ``python3`` if the shell finds the running interpreter under that name, else its path."""
    for name in ("python", "python3"):
        found = shutil.which(name)
        if found and os.path.realpath(found) == os.path.realpath(sys.executable) and _same_folder(found):
            return name
    return shlex.quote(sys.executable)


def _same_folder(python: str) -> bool:
    # two virtual environments may link to the same interpreter, from different folders
    return os.path.dirname(os.path.abspath(python)) == os.path.dirname(os.path.abspath(sys.executable))


def save_samples(dataset: ImageDataset, run_dir: Path) -> Path:
    """Returns images to try ``predict`` on."""
    file = dataset.path(0)
    if file is not None:
        return Path(file)
    folder = run_dir / "samples"
    folder.mkdir(exist_ok=True)
    missing = set(range(len(dataset.class_names)))
    for index in range(len(dataset)):
        image, label = dataset[index]
        if label in missing:
            pixels = (restore_pixels(image, dataset.mean, dataset.std) * 255).round().to(torch.uint8)
            to_pil_image(pixels).save(folder / f"{dataset.class_names[label]}.png")
            missing.remove(label)
        if not missing:
            break
    return folder
