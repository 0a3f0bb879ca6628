"""What a finished run tells its user: the results, and what to do next."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from torchvision.transforms.v2.functional import to_pil_image

from vitfast.config.schema import Config
from vitfast.data import ImageDataset
from vitfast.runs.run_directory import CONFIG, CURVES
from vitfast.text_table import percent, text_table
from vitfast.training.training_state import TrainingState

_OWN_IMAGES = "recipe=vit_small_cifar10_32px data.dataset=image_folder"


def result_table(metrics: dict[str, Any], state: TrainingState, weights: str, seconds: float) -> str:
    """Lays out the figures of a finished run.

    Args:
        metrics: of the last epoch and the test, by split.
        state: at the end.
        weights: which weights val and test were measured with, in words.
        seconds: that this start took.
    """
    rows = [
        (split, f"{figures['loss']:.4f}", percent(figures["top1"]), percent(figures["top5"]), _speed(figures))
        for split, figures in metrics.items()
    ]
    lines = [text_table(("split", "loss", "top-1", "top-5", "images/s"), rows)]
    measured = [split for split in ("val", "test") if split in metrics]
    if measured:
        lines.append(f"{' and '.join(measured)}: measured with {weights}.")
    if state.best_top1 is not None:
        lines.append(f"Best val top-1: {percent(state.best_top1)}, kept as checkpoint_{state.best_step:06d}.")
    if "test" not in metrics:
        lines.append("The data have no test split, so nothing was tested.")
    minutes, rest = divmod(round(seconds), 60)
    lines.append(f"Time: {minutes} min {rest} s." if minutes else f"Time: {rest} s.")
    return "\n".join(lines)


def next_commands(config: Config, run_dir: Path, sample: Path | None) -> str:
    """Commands to try after a run, exactly as they can be pasted into the shell that started it.

    Args:
        config: of the run.
        run_dir: its folder.
        sample: an image, or a folder of images, to predict; None if there is none.
    """
    run = shlex.quote(str(run_dir))
    commands = [("measure it in detail", f"evaluate checkpoint={run}")]
    if sample is not None:
        commands.append(("recognise images", f"predict checkpoint={run} images={shlex.quote(str(sample))}"))
    commands += [
        ("go on with it, had it been interrupted", f"train train.resume={run}"),
        ("the same with another seed", _again(config, run_dir)),
        ("a small model for your own images ROOT/train/CLASS/*", f"train {_OWN_IMAGES} data.root=ROOT"),
        ("all options", "train --help"),
    ]
    lines = [f"Everything is in {run_dir}: {CURVES}, metrics.jsonl, log.txt, checkpoints. Next:"]
    for purpose, command in commands:
        lines += [f"  # {purpose}", f"  {python_command()} -m vitfast.{command}"]
    return "\n".join(lines)


def resume_command(run_dir: Path) -> str:
    """The command that continues a run."""
    return f"{python_command()} -m vitfast.train train.resume={shlex.quote(str(run_dir))}"


def python_command() -> str:
    """How the user's shell calls the interpreter that is running: ``python`` if that is it, else its path."""
    for name in ("python", "python3"):
        found = shutil.which(name)
        if found and os.path.realpath(found) == os.path.realpath(sys.executable) and _same_prefix(found):
            return name
    return shlex.quote(sys.executable)


def save_samples(dataset: ImageDataset, run_dir: Path) -> Path:
    """Gives images to try ``predict`` on.

    Args:
        dataset: of the run.
        run_dir: its folder.

    Returns:
        The data set's own first file; or, where it is not made of files, the folder ``run_dir/samples`` with the first
        image of each class as ``<class>.png``.
    """
    file = dataset.path(0)
    if file is not None:
        return Path(file)
    folder = run_dir / "samples"
    folder.mkdir(exist_ok=True)
    mean = torch.tensor(dataset.mean).view(-1, 1, 1)
    std = torch.tensor(dataset.std).view(-1, 1, 1)
    missing = set(range(len(dataset.class_names)))
    for index in range(len(dataset)):
        image, label = dataset[index]
        if label in missing:
            pixels = ((image * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
            to_pil_image(pixels).save(folder / f"{dataset.class_names[label]}.png")
            missing.remove(label)
        if not missing:
            break
    return folder


def _again(config: Config, run_dir: Path) -> str:
    seed = config.seed + 1
    folder = run_dir.with_name(f"{run_dir.name}-seed{seed}")
    return f"train recipe={shlex.quote(str(run_dir / CONFIG))} run_dir={shlex.quote(str(folder))} seed={seed}"


def _same_prefix(python: str) -> bool:
    # Two virtual environments may link to one interpreter; their bin folders tell them apart.
    return os.path.dirname(os.path.abspath(python)) == os.path.dirname(os.path.abspath(sys.executable))


def _speed(figures: dict[str, float]) -> str:
    return f"{figures['images_per_s']:,.0f}"
