"""The checkpoint folders that vitfast writes in training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from vitfast.errors import UserError
from vitfast.files import sha256_of_file
from vitfast.models.saved_exits import SavedExits
from vitfast.weights.exit_entries import own_exits
from vitfast.weights.packed_weights import unpack_weights
from vitfast.weights.safetensors_file import read_safetensors_file

MANIFEST_FILE = "manifest.json"
WEIGHTS_FILE = "model.safetensors"


def read_checkpoint_folder(folder: Path) -> tuple[str, dict[str, Any], dict[str, Tensor], SavedExits | None]:
    """Reads the architecture's name, all its fields, its weights under our keys and the thresholds of its exits.

    Weights of fewer bits are returned as float32.

    Raises:
        UserError: it is damaged.
    """
    manifest_path = folder / MANIFEST_FILE
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        name, fields = manifest["model"]["name"], dict(manifest["model"]["fields"])
        expected_hash = manifest["files"][WEIGHTS_FILE]
        exits = own_exits(manifest)
    except UserError as error:
        raise UserError(f"{manifest_path}: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{manifest_path} is damaged or no manifest of vitfast ({error!r})") from error
    weights_path = folder / WEIGHTS_FILE
    if not weights_path.exists():
        raise UserError(f"{weights_path} does not exist; the checkpoint is incomplete, use another one")
    if sha256_of_file(weights_path) != expected_hash:
        raise UserError(f"{weights_path} is damaged: its SHA-256 is not the manifest's; use another checkpoint")
    weights = unpack_weights(read_safetensors_file(weights_path)[0], str(weights_path))[0]
    return name, fields, weights, exits
