"""Reads a checkpoint of any format into a ``SourceCheckpoint``: its weights under vitfast's keys, and its fields."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitfast.errors import UserError
from vitfast.files import read_text
from vitfast.models.model_fields import ModelFields
from vitfast.models.saved_exits import SavedExits
from vitfast.models.vit import ViTFields
from vitfast.weights.checkpoint import list_checkpoints, resolve_checkpoint
from vitfast.weights.exit_records import RELEASED_CURVE, RELEASED_THRESHOLDS, recorded_exits
from vitfast.weights.infer_fields import infer_fields
from vitfast.weights.key_tables import find_key_table
from vitfast.weights.key_tables.eva import TIMM_EVA
from vitfast.weights.key_tables.key_table import KeyTable, map_keys
from vitfast.weights.manifest import MANIFEST, MODEL_FILE, read_manifest, require_entries, verify_files
from vitfast.weights.recorded_preprocessing import recorded_preprocessing
from vitfast.weights.weight_file import INDEX_SUFFIX, WeightFile, is_shard, read_safetensors, read_weight_file

METADATA_KEY = "vitfast"  # of a safetensors file that vitfast wrote
HEAD_KEYS = "heads.0."  # of a head for ``load_vissl_head`` beside the model's weights
SCALE = ".scale"  # int8 weights [O, ...] under KEY have the scales [O] of their output channels under KEY + SCALE

CONFIG_FILE = "config.json"
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # of Hugging Face's hub
_HEAD = r"(head|head_dist|pre_logits)\."

# The fields that an architecture's name determines. create_model compares these with a file that names no architecture,
# and takes the others from it.
NAMED_FIELDS = (
    "embed_dim",
    "depth",
    "num_heads",
    "mlp_ratio",
    "patch_size",
    "in_chans",
    "distillation_token",
    "class_token",
    "register_tokens",
    "prefix_positions",
    "learned_positions",
    "rotary",
    "pre_norm",
    "gated_mlp",
    "mlp_norm",
    "attention_norm",
    "tokens_type",
    "token_dim",
    "resnet_layers",
    "resnet_width",
    "backbone",
    "num_exits",
    "patch_sizes",
    "img_size",
    "grid_size",
    "grid_sizes",
)

# those of NAMED_FIELDS that may differ where position embeddings are resized
SIZE_FIELDS = ("img_size", "grid_size", "grid_sizes")


@dataclass(frozen=True)
class SourceCheckpoint:
    """The content of a checkpoint of any format.

    Attributes:
        path: the file or folder.
        family: the format's name; ``"vitfast"`` for a checkpoint that stores all fields.
        name: the architecture's name, or None where the file does not say.
        fields: all known model fields: those that the file stores, that its weights determine, and that all checkpoints
            of its format share.
        state: the weights under vitfast's keys.
        skipped: ignored entries and keys of the file.
        unmatched: keys of the file that the key table does not map.
        extra_head_layer: a layer that the head needs and no model in vitfast has, or None. ``state`` then has no head.
        fields_type: the fields class of the models that the weights fit; None where ``name`` determines it.
        exits: the thresholds of exits in the file, None if there are none.
        preprocessing: of images, as timm's ``pretrained_cfg``; None where the file does not say.
    """

    path: Path
    family: str
    name: str | None
    fields: dict[str, Any]
    state: dict[str, Tensor]
    skipped: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()
    extra_head_layer: str | None = None
    fields_type: type[ModelFields] | None = None
    exits: SavedExits | None = None
    preprocessing: dict[str, Any] | None = None

    @property
    def adopted_fields(self) -> dict[str, Any]:
        """The fields that a model of the named architecture takes from the checkpoint."""
        if self.name is not None:
            return self.fields
        return {name: value for name, value in self.fields.items() if name not in NAMED_FIELDS}


def read_source_checkpoint(
    path: str | os.PathLike[str], fields_type: type[ModelFields] | None = None, *, model_name: str | None = None
) -> SourceCheckpoint:
    """Reads a run's best checkpoint, a checkpoint folder of vitfast or Hugging Face, or a file of any supported format.

    The file is not trusted: no code in it is executed. ``fields_type`` is that of the model to fill, if it is known.

    Raises:
        UserError: the path does not exist, is damaged or refused, or its format is not supported.
    """
    path = Path(path)
    if not os.path.exists(path):  # also False for a name that is too long
        raise UserError(f"checkpoint {path} does not exist")
    file = path
    if path.is_dir():
        if not (path / MANIFEST).exists() and list_checkpoints(path):
            path = resolve_checkpoint(path, best=True)
        if (path / MANIFEST).exists():
            return _read_vitfast_folder(path)
        file = _find_weights(path)
    if is_shard(file):
        raise UserError(f"{file} is one of several shards; give the folder that holds all of them and their index")
    weights = read_weight_file(file)
    if METADATA_KEY in weights.metadata:
        name, fields, exits = _read_metadata(weights)
        state = {key: tensor for key, tensor in weights.tensors.items() if not key.startswith(HEAD_KEYS)}
        skipped = tuple(key for key in weights.tensors if key not in state)
        state, unmatched = map_keys(state, TIMM_EVA.rules, str(path))
        return SourceCheckpoint(path, "vitfast", name, fields, state, skipped, tuple(unmatched), exits=exits)
    table = find_key_table(weights.tensors, weights.wrapper, fields_type, source=str(path), model_name=model_name)
    checkpoint = _convert(weights, table, path)
    of_hub = path.is_dir() or path.name in _HUB_FILES  # else the folder's files may be about other weights
    return replace(checkpoint, preprocessing=recorded_preprocessing(file.parent)) if of_hub else checkpoint


def unpack_weights(state: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Converts 8-bit weights, with their scales, and 16-bit weights to float32; other tensors stay unchanged.

    Returns:
        The weights by key, and the scales by the key of their weight.

    Raises:
        UserError: scales do not fit their weight.
    """
    scales = {
        key: state[f"{key}{SCALE}"]
        for key, weight in state.items()
        if f"{key}{SCALE}" in state and weight.dtype == torch.int8 and weight.dim() > 0
    }
    weights = {}
    for key, tensor in state.items():
        if (scale := scales.get(key)) is not None:
            if scale.shape != tensor.shape[:1]:
                raise UserError(
                    f"{source} is damaged: {key} has the shape {list(tensor.shape)}, its scales {list(scale.shape)}; "
                    "use another checkpoint"
                )
            weights[key] = tensor.float() * scale.view(-1, *(1,) * (tensor.dim() - 1))
        elif key.removesuffix(SCALE) not in scales:
            narrow = tensor.is_floating_point() and tensor.element_size() < 4
            weights[key] = tensor.float() if narrow else tensor
    return weights, scales


def _read_vitfast_folder(folder: Path) -> SourceCheckpoint:
    """Reads a checkpoint that training wrote."""
    manifest = read_manifest(folder)
    require_entries(folder, manifest, "model")
    verify_files(folder, manifest)
    stored = stored_weights(folder, manifest["model"], read_safetensors(folder / MODEL_FILE).tensors)
    return replace(stored, exits=recorded_exits(manifest), preprocessing=_as_timm(manifest.get("data", {})))


def _as_timm(data: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the preprocessing that a manifest records as timm's ``pretrained_cfg``; None if it is incomplete."""
    if not {"img_size", "in_chans", "mean", "std"} <= data.keys():
        return None
    return {
        "input_size": (data["in_chans"], data["img_size"], data["img_size"]),
        "mean": tuple(data["mean"]),
        "std": tuple(data["std"]),
        "interpolation": data.get("interpolation", "bilinear"),
        "crop_pct": data.get("crop_pct", 1.0),
        "crop_mode": "squash" if data.get("resize") == "both_sides" else "center",
    }


def stored_weights(path: Path, model: Mapping[str, Any], state: Mapping[str, Tensor]) -> SourceCheckpoint:
    """Returns weights of vitfast, possibly packed, with the record of their model: ``{"name": …, "fields": …}``."""
    weights, _ = unpack_weights(state, str(path))
    name, fields = model["name"], model["fields"]
    if not isinstance(name, str) or not isinstance(fields, dict):
        raise UserError(f"{path}: its record names no model; save it again")
    return SourceCheckpoint(path, "vitfast", name, fields, weights)


def _find_weights(folder: Path) -> Path:
    """Finds the file of weights, or the index of a sharded one, in a folder of Hugging Face."""
    for suffix in ("", INDEX_SUFFIX):
        for name in _HUB_FILES:
            if (folder / f"{name}{suffix}").exists():
                return folder / f"{name}{suffix}"
    names = ", ".join((MANIFEST, *_HUB_FILES))
    raise UserError(f"checkpoint {folder} is a folder without weights: it has none of {names}; give the weights' file")


def _read_metadata(weights: WeightFile) -> tuple[str, dict[str, Any], SavedExits | None]:
    try:
        record = json.loads(weights.metadata[METADATA_KEY])
        name, fields = record["model"]["name"], record["model"]["fields"]
        if isinstance(name, str) and isinstance(fields, dict):
            return name, fields, recorded_exits(record)
    except UserError as error:
        raise UserError(f"{weights.path}: {error}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{weights.path}: its vitfast metadata is damaged ({error!r}); save it again") from error
    raise UserError(f"{weights.path}: its vitfast metadata names no model; save it again")


def _convert(weights: WeightFile, table: KeyTable, path: Path) -> SourceCheckpoint:
    """Converts weights of a foreign format by its key table."""
    mapped, skipped, extra_head_layers = {}, [], []
    for key, tensor in weights.tensors.items():
        if _matches(key, table.extra_head_layers):
            extra_head_layers.append(key)
        elif _matches(key, table.ignored):
            skipped.append(key)
        else:
            mapped[key] = tensor
    state, unmatched = map_keys(mapped, table.rules, str(path))
    if table.convert is not None:
        state = table.convert(state)
    if extra_head_layers or (issubclass(table.fields_type, ViTFields) and "head.weight" not in state):
        # a head that lacks a layer, or only the hidden layer of a head, cannot be used
        without_head = {key: tensor for key, tensor in state.items() if not re.match(_HEAD, key)}
        skipped += [*extra_head_layers, *sorted(state.keys() - without_head.keys())]
        state = without_head
    fields = infer_fields(table.fields_type, state) | dict(table.fields)
    exits, ignored = None, weights.ignored
    try:
        if table.read_fields is not None:
            fields |= table.read_fields(weights.tensors, _read_config(weights.path))
        if table.read_exits is not None:
            exits = table.read_exits(weights.entries)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{path}: {CONFIG_FILE} has a value of a wrong type ({error!r}); fix it") from error
    if exits is not None:
        used = (RELEASED_THRESHOLDS, RELEASED_CURVE) if exits.gmacs else (RELEASED_THRESHOLDS,)
        ignored = tuple(name for name in ignored if name not in used)
    if extra_head_layers:
        del fields["num_classes"], fields["head_hidden_dim"]
    return SourceCheckpoint(
        path,
        table.name,
        None,
        fields,
        state,
        skipped=(*skipped, *ignored),
        unmatched=tuple(unmatched),
        extra_head_layer=extra_head_layers[0] if extra_head_layers else None,
        fields_type=table.fields_type,
        exits=exits,
    )


def _matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(re.fullmatch(pattern, key) for pattern in patterns)


def _read_config(file: Path) -> Mapping[str, Any]:
    """Reads the ``config.json`` beside a file of weights; empty if there is none."""
    path = file.parent / CONFIG_FILE
    if not path.exists():
        return {}
    try:
        config = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{CONFIG_FILE} is damaged or not JSON ({error}); fix it, or move it elsewhere") from error
    if not isinstance(config, dict):
        raise UserError(f"{CONFIG_FILE} is not the configuration of a model; fix it, or move it elsewhere")
    return config
