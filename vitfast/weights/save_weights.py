"""``save_weights``: one safetensors file that timm can read and that stores how to build the model."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from vitfast.errors import UserError
from vitfast.files import atomic_file
from vitfast.models.image_model import ImageModel
from vitfast.models.multi_crop import MultiCrop
from vitfast.models.registry import resolve_fields
from vitfast.models.vit import ViTFields, arrange_patches
from vitfast.weights.check_fields import COMPUTATION_FIELDS
from vitfast.weights.exit_records import exits_record
from vitfast.weights.key_tables.eva import timm_keys
from vitfast.weights.key_tables.vissl import swav_state
from vitfast.weights.manifest import MODEL_FILE
from vitfast.weights.source_checkpoint import CONFIG_FILE, HEAD_KEYS, METADATA_KEY
from vitfast.weights.written_layouts import Layout, find_layout

_FORMAT_VERSION = 1


def save_weights(model: ImageModel | MultiCrop, path: str | os.PathLike[str], *, layout: Layout = "timm") -> None:
    """Writes the weights under timm's keys and in timm's layout, with the model's name and fields as metadata.

    ``create_model(checkpoint=path)`` builds the model again, and ``load_vissl_head(path)`` the head of a ``MultiCrop``.

    Args:
        model: from ``create_model``, or a ``MultiCrop`` of one, whose head is written under VISSL's keys.
        path: ends in ``.safetensors``; an existing file is replaced. For Hugging Face a folder, which is created.
        layout: ``"timm"``; ``"original"``, the keys of DINOv2, DINOv3 or CLIP, without metadata; or
            ``"huggingface"``, ``model.safetensors`` and ``config.json`` of DINOv2, DINOv3, CLIP or SigLIP, for
            ``from_pretrained``. Except CLIP's, these have no head: give ``create_model`` ``num_classes=0``. For a
            ``MultiCrop`` with a ``SwavHead``: ``"swav"`` or ``"vissl"``, the keys of SwAV's original code (ResNets
            of torchvision) or of VISSL (also ViT, DeiT and ConViT), without metadata.

    Raises:
        UserError: the path has another suffix or its folder does not exist, the model is not a vitfast model, or the
            layout cannot express it.
        OSError: the file cannot be written (disk full, no permission). An existing file stays intact.
    """
    head_state: dict[str, Tensor] = {}
    if layout in ("swav", "vissl"):
        write_safetensors(swav_state(model, layout), path, {"format": "pt"})
        return
    if isinstance(model, MultiCrop):
        head_state = {f"{HEAD_KEYS}{key}": tensor.detach().cpu() for key, tensor in model.head.state_dict().items()}
        model = model.model
    if not isinstance(model, ImageModel):
        raise UserError(f"save_weights writes models from vitfast.create_model; got a {type(model).__name__}")
    if layout != "timm":
        _save_layout(model, Path(path), layout)
        return
    record: dict[str, Any] = {
        "format_version": _FORMAT_VERSION,
        "model": {"name": model.model_name, "fields": model.model_fields},
    }
    if model.saved_exits is not None:
        record["exit_thresholds"] = exits_record(model.saved_exits)
    _warn_of_fields(model, path)
    metadata = {"format": "pt", METADATA_KEY: json.dumps(record)}
    write_safetensors(_timm_state(model) | head_state, path, metadata)


def _warn_of_fields(model: ImageModel, path: str | os.PathLike[str]) -> None:
    """Warns of fields that change the computation and that only the metadata tell, which timm does not read."""
    usual = resolve_fields(model.model_name)
    names = [name for name in COMPUTATION_FIELDS if hasattr(usual, name)]
    different = [name for name in names if getattr(model.fields, name) != getattr(usual, name)]
    if different:
        values = ", ".join(f"{name}={getattr(model.fields, name)!r}" for name in different)
        warnings.warn(
            f"{path}: only vitfast reads {values} from the file's metadata; another library, for example "
            f"timm.create_model({model.model_name!r}), must be told, or its results differ",
            UserWarning,
            stacklevel=3,
        )


def _save_layout(model: ImageModel, path: Path, layout: Layout) -> None:
    fields = model.fields
    written = find_layout(layout, fields, model.model_name)
    config = None if written.config is None else written.config(fields)
    state = written.write(_convolution_state(model), fields)
    if config is None:
        write_safetensors(state, path, {"format": "pt"})
        return
    if not path.parent.is_dir():
        raise UserError(f"{path} cannot be written: the folder {path.parent} does not exist; create it first")
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; give a folder, in which {MODEL_FILE} and {CONFIG_FILE} are written")
    path.mkdir(exist_ok=True)
    write_safetensors(state, path / MODEL_FILE, {"format": "pt"})
    with atomic_file(path / CONFIG_FILE) as temporary:
        Path(temporary).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_safetensors(
    state: dict[str, Tensor],
    path: str | os.PathLike[str],
    metadata: dict[str, str],
    *,
    suffix: str = ".safetensors",
) -> None:
    """Writes a safetensors file under a temporary name, then renames it; raises as ``save_weights``."""
    path = Path(path)
    if path.suffix != suffix:
        raise UserError(f"{path} must end in {suffix}, the format that is written; use {path.stem}{suffix}")
    if not path.parent.is_dir():
        raise UserError(f"{path} cannot be written: the folder {path.parent} does not exist; create it first")
    try:
        with atomic_file(path) as temporary:
            safetensors.torch.save_file(state, temporary, metadata)
    except safetensors.SafetensorError as error:  # the library converts the system's error to text
        raise OSError(f"{path} could not be written: {error}") from error


def _timm_state(model: ImageModel) -> dict[str, Tensor]:
    state = timm_keys(_convolution_state(model), model.fields)
    return {key: tensor.contiguous() for key, tensor in state.items()}


def _convolution_state(model: ImageModel) -> dict[str, Tensor]:
    """Returns the weights under vitfast's keys, with the patch projection as a convolution."""
    state = {key: tensor.detach().cpu() for key, tensor in model.state_dict().items()}
    key = "patch_embed.proj.weight"
    if isinstance(model.fields, ViTFields):
        state[key] = arrange_patches(state[key], replace(model.fields, patch_order="channels_first"))
    return state
