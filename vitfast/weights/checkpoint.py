"""A checkpoint of any kind, brought under our keys."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vitfast.errors import UserError
from vitfast.models.image_model import ModelFields
from vitfast.models.saved_exits import SavedExits
from vitfast.models.vit_fields import ViTFields
from vitfast.weights.checkpoint_folder import MANIFEST_FILE, read_checkpoint_folder
from vitfast.weights.exit_entries import RELEASED_CURVE, RELEASED_THRESHOLDS, own_exits
from vitfast.weights.families import recognize
from vitfast.weights.family import Family
from vitfast.weights.key_map import map_keys
from vitfast.weights.raw_file import RawFile, read_raw_file
from vitfast.weights.sharded_file import is_part
from vitfast.weights.state_fields import state_fields
from vitfast.weights.weights_path import weights_path

METADATA_KEY = "vitfast"
HEAD_KEYS = "heads.0."  # beside a model's own weights: a head that ``load_vissl_head`` builds
_CONFIG_FILE = "config.json"
_HEAD = r"(head|head_dist|pre_logits)\."

# What an architecture's name says. create_model does not take these from a file that names none: it compares them.
NAMED_FIELDS = (
    "embed_dim",
    "depth",
    "num_heads",
    "mlp_ratio",
    "patch_size",
    "in_chans",
    "distillation_token",
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

# of these, what another image size changes: it differs where position embeddings are to be resized
SIZE_FIELDS = ("img_size", "grid_size", "grid_sizes")


@dataclass(frozen=True)
class Checkpoint:
    """What ``read_checkpoint`` found.

    Attributes:
        path: the file or folder it was read from.
        family: whose weights they are; ``"vitfast"`` where the file says all that there is to know.
        name: the architecture's name, or None where the file does not say.
        fields: all model fields that are known of it: those the file says, those its weights determine, those its
            family always has.
        state: the weights under our keys.
        skipped: what is of no use here, under the file's keys.
        unmatched: keys of the file that mean nothing to us.
        head_input: a layer that the head would need and no model here has, or None. There is no head then.
        models: the fields' class of the models that the weights fit; None where ``name`` says it.
        exits: the thresholds of exits that the file holds, None where it holds none.
    """

    path: Path
    family: str
    name: str | None
    fields: dict[str, Any]
    state: dict[str, Tensor]
    skipped: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()
    head_input: str | None = None
    models: type[ModelFields] | None = None
    exits: SavedExits | None = None

    @property
    def adopted_fields(self) -> dict[str, Any]:
        """The fields that a model of the named architecture takes from the checkpoint."""
        if self.name is not None:
            return self.fields
        return {name: value for name, value in self.fields.items() if name not in NAMED_FIELDS}


def read_checkpoint(
    path: str | os.PathLike[str], models: type[ModelFields] | None = None, *, model_name: str | None = None
) -> Checkpoint:
    """Reads a checkpoint folder of vitfast or Hugging Face, or a file of any known kind.

    Args:
        path: the folder or file. It is not trusted: nothing in it is executed.
        models: the fields' class of the model that the weights are for; None if it is not known.
        model_name: the model, for messages.

    Raises:
        UserError: it does not exist, is damaged or refused, or its weights are of no known family.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"checkpoint {path} does not exist")
    file = path
    if path.is_dir():
        if (path / MANIFEST_FILE).exists():
            name, fields, state, exits = read_checkpoint_folder(path)
            return Checkpoint(path, "vitfast", name, fields, state, exits=exits)
        file = weights_path(path)
    if is_part(file):
        raise UserError(f"{file} is one part of several; give the folder that holds all of them and their index")
    raw = read_raw_file(file)
    if METADATA_KEY in raw.metadata:
        name, fields, exits = _read_metadata(raw)
        state = {key: tensor for key, tensor in raw.tensors.items() if not key.startswith(HEAD_KEYS)}
        skipped = tuple(key for key in raw.tensors if key not in state)
        return Checkpoint(path, "vitfast", name, fields, state, skipped=skipped, exits=exits)
    family = recognize(raw.tensors, raw.wrapper, models, source=str(path), model_name=model_name)
    return _import(raw, family, path)


def _import(raw: RawFile, family: Family, path: Path) -> Checkpoint:
    weights, skipped, head_inputs = {}, [], []
    for key, tensor in raw.tensors.items():
        if _matches(key, family.head_inputs):
            head_inputs.append(key)
        elif _matches(key, family.leftovers):
            skipped.append(key)
        else:
            weights[key] = tensor
    state, unmatched = map_keys(weights, family.rules, str(path))
    if head_inputs or (issubclass(family.models, ViTFields) and "head.weight" not in state):
        # the rest of a head that lacks a layer here, or its hidden layer alone, is of no use
        without_head = {key: tensor for key, tensor in state.items() if not re.match(_HEAD, key)}
        skipped += [*head_inputs, *sorted(state.keys() - without_head.keys())]
        state = without_head
    fields = state_fields(family.models, state) | dict(family.fields)
    exits, ignored = None, raw.ignored
    try:
        if family.read_fields is not None:
            fields |= family.read_fields(raw.tensors, _read_config(raw.path))
        if family.read_exits is not None:
            exits = family.read_exits(raw.beside)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if exits is not None:
        used = (RELEASED_THRESHOLDS, RELEASED_CURVE) if exits.gmacs else (RELEASED_THRESHOLDS,)
        ignored = tuple(name for name in ignored if name not in used)
    if head_inputs:
        del fields["num_classes"], fields["head_hidden_dim"]
    return Checkpoint(
        path,
        family.name,
        None,
        fields,
        state,
        skipped=(*skipped, *ignored),
        unmatched=tuple(unmatched),
        head_input=head_inputs[0] if head_inputs else None,
        models=family.models,
        exits=exits,
    )


def _matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(re.fullmatch(pattern, key) for pattern in patterns)


def _read_config(file: Path) -> Mapping[str, Any]:
    """Reads the ``config.json`` beside a file of weights; an empty one where there is none."""
    path = file.parent / _CONFIG_FILE
    if not path.exists():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{_CONFIG_FILE} is damaged or no JSON ({error}); mend it, or move it elsewhere") from error
    if not isinstance(config, dict):
        raise UserError(f"{_CONFIG_FILE} is no configuration of a model; mend it, or move it elsewhere")
    return config


def _read_metadata(raw: RawFile) -> tuple[str, dict[str, Any], SavedExits | None]:
    try:
        record = json.loads(raw.metadata[METADATA_KEY])
        name, fields = record["model"]["name"], record["model"]["fields"]
        if isinstance(name, str) and isinstance(fields, dict):
            return name, fields, own_exits(record)
    except UserError as error:
        raise UserError(f"{raw.path}: {error}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{raw.path}: its metadata of vitfast are damaged ({error!r}); save it again") from error
    raise UserError(f"{raw.path}: its metadata of vitfast name no model; save it again")
