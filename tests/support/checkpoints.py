"""Small checkpoints and checks of them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitfast.runs.checkpoint import latest_checkpoint, load_weights_file, save_checkpoint

FILES = ("model.safetensors", "ema.safetensors", "state.pt", "manifest.json")


def weights(value: float) -> dict[str, Tensor]:
    """A state dict of several shapes and types that can be told from those of other values."""
    return {"a.weight": torch.full((30, 20), value), "b": torch.arange(7).to(torch.float64), "c": torch.tensor(value)}


def save(run_dir: Path, step: int, *, content: float | None = None, **changes: Any) -> Path:
    """Saves a checkpoint with all four files; ``content``, or else the step, is its value."""
    value = float(step if content is None else content)
    arguments: dict[str, Any] = {
        "model": weights(value),
        "ema": weights(-value),
        "state": {"step": step, "random": torch.get_rng_state()},
        "manifest": {"model": {"name": "m", "fields": {}}, "class_names": ["a", "b"], "epoch": 1, "metrics": {}},
    }
    return save_checkpoint(run_dir, step=step, **{**arguments, **changes})


def value(checkpoint: Path) -> float:
    """What ``save`` was given."""
    return float(load_weights_file(checkpoint)["c"])


def newest_value(run_dir: Path) -> float:
    """The value of the newest checkpoint; a damaged one under a name that anyone reads is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        newest = latest_checkpoint(run_dir)
    assert newest is not None
    return value(newest)
