"""Small checkpoints and checks of them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitfast.files import sha256_of_file
from vitfast.weights.checkpoint import latest_checkpoint, load_weights_file, save_checkpoint
from vitfast.weights.manifest import manifest_text

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


def rewrite_manifest(path: Path, **changes: Any) -> None:
    """Gives a checkpoint the right hashes for whatever it holds, as who has made it can."""
    file = path / "manifest.json"
    manifest = {**json.loads(file.read_text()), **changes}
    for name in manifest["files"]:
        manifest["files"][name] = sha256_of_file(path / name)
    file.write_text(manifest_text(manifest))


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
