"""Contents of a run directory, and differences of two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from vitfast.weights.checkpoint import latest_checkpoint, load_state, load_weights_file


def content(run_dir: Path) -> dict[str, Any]:
    """Reads the newest checkpoint (weights, average, optimizer, random generators, manifest) and the metrics."""
    newest = latest_checkpoint(run_dir)
    assert newest is not None
    found = {
        "name": newest.name,
        "model": load_weights_file(newest),
        "state": load_state(newest),
        "manifest": {
            key: value
            for key, value in json.loads((newest / "manifest.json").read_text()).items()
            if key not in ("files", "manifest_sha256")
        },
        "metrics": [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()],
    }
    if (newest / "ema.safetensors").exists():
        found["ema"] = load_weights_file(newest, "ema")
    return found


def differences(first: Any, second: Any, path: str = "") -> list[str]:
    """Names every place where two nested structures differ in any bit; clocks are not compared."""
    if path.endswith(("seconds_in_epoch", "images_per_s")):
        return []
    if isinstance(first, torch.Tensor):
        same_kind = isinstance(second, torch.Tensor) and (first.dtype, first.shape) == (second.dtype, second.shape)
        return [] if same_kind and torch.equal(_bytes(first), _bytes(second)) else [path]
    if isinstance(first, dict):
        if first.keys() != second.keys():
            return [f"{path}: keys"]
        return [found for key in first for found in differences(first[key], second[key], f"{path}.{key}")]
    if isinstance(first, (list, tuple)):
        if len(first) != len(second):
            return [f"{path}: length"]
        pairs = enumerate(zip(first, second, strict=True))
        return [found for index, (a, b) in pairs for found in differences(a, b, f"{path}[{index}]")]
    return [] if first == second else [f"{path}: {first} != {second}"]


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The bits themselves: 0 and -0 differ, a NaN equals itself."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)
