"""Which file holds the weights, where a folder is given."""

from __future__ import annotations

from pathlib import Path

from vitfast.errors import UserError
from vitfast.weights.checkpoint_folder import MANIFEST_FILE
from vitfast.weights.sharded_file import INDEX_ENDING

_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")  # of Hugging Face's hub


def weights_path(folder: Path) -> Path:
    """Finds the file of weights, or the index of several, in a folder of Hugging Face.

    Raises:
        UserError: there is none.
    """
    for ending in ("", INDEX_ENDING):
        for name in _FOLDER_FILES:
            if (folder / f"{name}{ending}").exists():
                return folder / f"{name}{ending}"
    inside = sorted(manifest.parent.name for manifest in folder.glob(f"*/{MANIFEST_FILE}"))
    if inside:
        example = folder / inside[-1]
        raise UserError(
            f"checkpoint {folder} has no {MANIFEST_FILE}; give one of its checkpoints, for example {example}"
        )
    names = ", ".join((MANIFEST_FILE, *_FOLDER_FILES))
    raise UserError(f"checkpoint {folder} is a folder without weights: it has none of {names}; give the weights' file")
