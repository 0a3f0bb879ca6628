"""Checkpoints that are told by their keys to be of another kind than classifiers, so that the refusal can say which."""

from __future__ import annotations

import re
from collections.abc import Collection

from vitfast.errors import UserError

_DETECTOR = "a detection model's"

# (pattern of a whole key, whose it is)
OTHER_KINDS: tuple[tuple[str, str], ...] = (
    (r"rpn\.head\..+|roi_heads\..+", _DETECTOR),  # torchvision, Detectron2
    (r"proposal_generator\..+|rpn_head\..+|roi_head\..+|bbox_head\..+", _DETECTOR),  # Detectron2, MMDetection
    (r"(model\.)?(bbox_embed|class_embed|bbox_predictor|class_labels_classifier)\..+", _DETECTOR),  # DETR
    (r"(model\.)?(query_embed|query_position_embeddings)\.weight", _DETECTOR),
    (r"det_token|vit\.embeddings\.detection_tokens", _DETECTOR),  # YOLOS
    (r"anchor_generator\..+|head\.classification_head\..+|head\.regression_head\..+", _DETECTOR),  # torchvision
    (r"decode_head\..+|auxiliary_head\..+", "a segmentation model's"),  # MMSegmentation
    (r"mask_decoder\..+|sem_seg_head\..+", "a segmentation model's"),
    (r".+\.relative_position_bias_table", "a Swin Transformer's or BEiT's"),
    (r"decoder_blocks\.\d+\..+|decoder\.decoder_layers\.\d+\..+", "a masked autoencoder's"),
    (r"text_projection|text_model\..+|token_embedding\.weight", "a model's of images and text (CLIP)"),
)


def refuse_other_kinds(keys: Collection[str], source: str) -> None:
    """Refuses a file whose keys are known to be of another kind.

    Raises:
        UserError: they are.
    """
    for pattern, whose in OTHER_KINDS:
        if key := next((key for key in keys if re.fullmatch(pattern, key)), None):
            raise UserError(
                f"{source} holds {whose} weights (it has {key}), not a classifier's; vitfast does not load these: give "
                "the checkpoint of an image classifier"
            )
