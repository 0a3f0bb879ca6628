"""The checkpoint of a quantized model: a folder as training leaves them, with weights in few bits."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from vitfast.errors import UserError
from vitfast.quantization.packed_state import pack_state
from vitfast.quantization.record import quantization_record
from vitfast.runs.checkpoint import CheckpointError, read_manifest_file, write_checkpoint
from vitfast.runs.run_directory import CONFIG
from vitfast.runs.trained_model import TrainedModel

_SOURCE = "quantized_from"


def check_target(folder: Path) -> None:
    """Raises UserError unless a quantized checkpoint may be written to ``folder``, before much is computed."""
    if not folder.exists():
        return
    try:
        replaceable = folder.is_dir() and _SOURCE in read_manifest_file(folder)
    except CheckpointError:
        replaceable = folder.is_dir() and not any(folder.iterdir())
    if not replaceable:
        raise UserError(
            f"output={folder} is there and no quantized checkpoint, so it is not replaced; give another one"
        )


def write_quantized_checkpoint(folder: Path, trained: TrainedModel, figures: dict[str, Any]) -> None:
    """Writes a converted model as a checkpoint that all commands load; an older one of this kind is replaced.

    The weights are packed, see ``pack_state``; the manifest says how the model is quantized.

    Args:
        folder: to be made.
        trained: the checkpoint that the model came from, with the converted model.
        figures: what was measured, for the manifest.

    Raises:
        UserError: it cannot be written.
    """
    kept = ("model", "class_names", "data", "epoch", "step", "exit_thresholds")
    manifest = {key: trained.manifest[key] for key in kept if key in trained.manifest}
    manifest |= {
        "quantization": quantization_record(trained.model),
        "metrics": figures,
        _SOURCE: {"checkpoint": str(trained.checkpoint), "weights": trained.weights},
    }
    replaced = folder.with_name(f".{folder.name}.replaced")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for litter in (replaced, folder.with_name(f".{folder.name}.writing")):
            shutil.rmtree(litter, ignore_errors=True)
        write_checkpoint(folder, model=pack_state(trained.model), manifest=manifest)
        config = trained.checkpoint.parent / CONFIG
        if config.is_file():  # where the data lie
            shutil.copyfile(config, folder / CONFIG)
    except OSError as error:
        raise UserError(f"output={folder} cannot be written: {error.strerror or error}") from error
    shutil.rmtree(replaced, ignore_errors=True)
