"""All checkpoint formats, and which of them a file has.

To add a format, write a module with its ``TABLES`` and add it to ``KEY_TABLES``.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from vitfast.errors import UserError
from vitfast.models.foreign_model import TimmFields, TorchvisionFields
from vitfast.models.model_fields import ModelFields
from vitfast.models.vit import ViTFields
from vitfast.weights.key_tables import (
    dvt,
    eva,
    google,
    huggingface,
    jeonsworld,
    myrtle,
    timm,
    torchvision,
    towers,
    vissl,
)
from vitfast.weights.key_tables.key_table import KeyTable

# the first table whose signature matches applies
KEY_TABLES: tuple[KeyTable, ...] = (
    *google.TABLES,
    *towers.TABLES,
    *eva.TABLES,
    *timm.TABLES,
    *torchvision.TABLES,
    *huggingface.TABLES,
    *jeonsworld.TABLES,
    *myrtle.TABLES,
    *vissl.TABLES,
    *dvt.TABLES,
)

# for models without a foreign format: keys of the model itself, or of the library that it is from
MODEL_KEYS = KeyTable(name="own keys", signature=(), fields_type=ModelFields)

_DETECTOR = "a detection model"
_SEGMENTER = "a segmentation model"

# (pattern of a whole key, kind of model that has it): checkpoints of models that are no classifiers
_OTHER_KINDS: tuple[tuple[str, str], ...] = (
    (r"rpn\.head\..+|roi_heads\..+", _DETECTOR),  # torchvision, Detectron2
    (r"proposal_generator\..+|rpn_head\..+|roi_head\..+|bbox_head\..+", _DETECTOR),  # Detectron2, MMDetection
    (r"(model\.)?(bbox_embed|class_embed|bbox_predictor|class_labels_classifier)\..+", _DETECTOR),  # DETR
    (r"(model\.)?(query_embed|query_position_embeddings)\.weight", _DETECTOR),
    (r"det_token|vit\.embeddings\.detection_tokens", _DETECTOR),  # YOLOS
    (r"anchor_generator\..+|head\.classification_head\..+|head\.regression_head\..+", _DETECTOR),  # torchvision
    (r"decode_head\..+|auxiliary_head\..+", _SEGMENTER),  # MMSegmentation
    (r"mask_decoder\..+|sem_seg_head\..+", _SEGMENTER),
    (r".+\.relative_position_bias_table", "a Swin Transformer or BEiT"),
    (r"decoder_blocks\.\d+\..+|decoder\.decoder_layers\.\d+\..+", "a masked autoencoder"),
    (r"text_projection|text_model\..+|token_embedding\.weight", "an image-text model (CLIP)"),
)

_SHOWN_KEYS = 5


def find_key_table(
    keys: Collection[str], wrapper: str, fields_type: type[ModelFields] | None, *, source: str, model_name: str | None
) -> KeyTable:
    """Finds the key table of a file by its keys, for a model with fields of ``fields_type`` (None: not known yet).

    Raises:
        UserError: no table matches, the file is of an unsupported kind, or its weights fit another kind of model.
    """
    if fields_type is TimmFields:  # timm has every kind of classifier, also those below
        return MODEL_KEYS
    table = next(
        (
            table
            for table in KEY_TABLES
            # torchvision's own keys need no table, though those of its ViTs have one for vitfast's models
            if (fields_type is not TorchvisionFields or table.fields_type is fields_type)
            and table.wrapper in (None, wrapper)
            and all(any(re.fullmatch(pattern, key) for key in keys) for pattern in table.signature)
        ),
        None,
    )
    if table is None and (found := _first_match(_OTHER_KINDS, keys)):
        kind, key = found
        raise UserError(
            f"{source} holds weights of {kind} (it has {key}), not of a classifier; vitfast does not load these: give "
            "the checkpoint of an image classifier"
        )
    has_table = fields_type is None or any(known.fields_type is fields_type for known in KEY_TABLES)
    if not has_table or (table is None and fields_type not in (None, ViTFields)):
        return MODEL_KEYS
    if table is None:
        known = ", ".join(dict.fromkeys(table.name for table in KEY_TABLES))
        first = ", ".join(list(keys)[:_SHOWN_KEYS])
        raise UserError(
            f"{source} holds no weights of a Vision Transformer that vitfast supports: its keys are {first}, …; "
            f"supported formats: {known}; rename the keys to timm's to load others"
        )
    if found := _first_match(table.unsupported, keys):
        kind, key = found
        raise UserError(f"{source} is {kind} (it has {key}); vitfast does not load these")
    if fields_type is not None and table.fields_type is not fields_type:
        raise UserError(f"{source} holds {table.name} weights, which do not fit {model_name}, another kind of model")
    return table


def _first_match(kinds: tuple[tuple[str, str], ...], keys: Collection[str]) -> tuple[str, str] | None:
    for pattern, kind in kinds:
        if key := next((key for key in keys if re.fullmatch(pattern, key)), None):
            return kind, key
    return None
