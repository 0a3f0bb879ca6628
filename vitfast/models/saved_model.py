"""A model as it lies on disk: its name, its fields and its weights."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vitfast.errors import UserError

MANIFEST_FILE = "manifest.json"
WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True)
class SavedModel:
    """What ``read_saved_model`` found.

    Attributes:
        path: the file or folder it was read from.
        name: the architecture's name, or None where the file does not say.
        fields: the model fields that the file determines.
        state: the weights under timm's keys.
    """

    path: Path
    name: str | None
    fields: dict[str, Any]
    state: dict[str, Tensor]


def read_saved_model(path: str | os.PathLike[str]) -> SavedModel:
    """Reads a vitfast checkpoint folder, or a ``.safetensors`` file with timm's keys.

    A folder's manifest says name and fields. A file says neither; its head tells the number of classes.

    Args:
        path: the folder or file.

    Raises:
        UserError: it does not exist, is neither of the two, or is damaged.
    """
    path = Path(path)
    if path.is_dir():
        return _read_checkpoint_folder(path)
    if not path.exists():
        raise UserError(f"checkpoint {path} does not exist")
    if path.suffix != ".safetensors":
        raise UserError(
            f"checkpoint {path} is neither a vitfast checkpoint folder (with {MANIFEST_FILE} and {WEIGHTS_FILE}) "
            "nor a .safetensors file; convert it with safetensors.torch.save_file(state_dict, path)"
        )
    state = _read_weights(path)
    fields = {"num_classes": len(state["head.weight"])} if "head.weight" in state else {}
    return SavedModel(path, None, fields, state)


def _read_checkpoint_folder(folder: Path) -> SavedModel:
    manifest_path = folder / MANIFEST_FILE
    if not manifest_path.exists():
        inside = sorted(manifest.parent.name for manifest in folder.glob(f"*/{MANIFEST_FILE}"))
        advice = f"give one of its checkpoints, for example {folder / inside[-1]}" if inside else "check the path"
        raise UserError(f"checkpoint {folder} has no {MANIFEST_FILE}; {advice}")
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        name, fields = manifest["model"]["name"], dict(manifest["model"]["fields"])
        expected_hash = manifest["files"][WEIGHTS_FILE]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{manifest_path} is damaged or no manifest of vitfast ({error!r})") from error
    weights_path = folder / WEIGHTS_FILE
    if not weights_path.exists():
        raise UserError(f"{weights_path} does not exist; the checkpoint is incomplete, use another one")
    if _sha256(weights_path) != expected_hash:
        raise UserError(f"{weights_path} is damaged: its SHA-256 is not the manifest's; use another checkpoint")
    return SavedModel(folder, name, fields, _read_weights(weights_path))


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or no safetensors file ({error})") from error


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
