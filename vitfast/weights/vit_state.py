"""What a ViT's weights, under our keys, say about the model they are from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitfast.models.vit_fields import ViTFields
from vitfast.weights.transformer_state import block_fields, grid_of, pixels_of, rows_of


def fields_of_state(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the fields of ``ViTFields`` that the weights determine.

    What cannot be told, because weights are missing or have another shape, is left out. The number of heads never can.
    """
    fields = block_fields(state)
    fields["head_type"] = "norm_linear" if "fc_norm.weight" in state and "norm.weight" not in state else "linear"
    fields["num_classes"] = rows_of(state, "head.weight")
    fields["head_hidden_dim"] = rows_of(state, "pre_logits.fc.weight")
    return fields | _patch_fields(state)


def _patch_fields(state: Mapping[str, Tensor]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    projection, positions = state.get("patch_embed.proj.weight"), state.get("pos_embed")
    if projection is not None and projection.dim() == 4:
        fields |= {"patch_order": "channels_first", "in_chans": projection.shape[1], "patch_size": projection.shape[2]}
    elif projection is not None and projection.dim() == 2:
        fields["patch_order"] = "channels_last"
        if pixels := pixels_of(projection.shape[1]):
            fields["in_chans"], fields["patch_size"] = pixels
    tokens = {"none": 1} if "dist_token" not in state else {"after_class": 2, "last": 1}
    for distillation_token, prefix in tokens.items():
        if grid_size := grid_of(positions, prefix):
            fields["distillation_token"] = distillation_token
            if "patch_size" in fields:
                fields["img_size"] = grid_size * fields["patch_size"]
            break
    return fields


def arrange_patches(weight: Tensor, fields: ViTFields) -> Tensor:
    """Brings the patch projection into the layout of a model's ``patch_order``; the function stays the same.

    Args:
        weight: convolution ``[C, in_chans, P, P]`` or linear ``[C, P * P * in_chans]``.
        fields: of the model.

    Returns:
        The same numbers in the model's layout; what has another number of elements is left as it is.
    """
    patch, chans = fields.patch_size, fields.in_chans
    if fields.patch_order == "channels_last" and weight.dim() == 4:
        return weight.permute(0, 2, 3, 1).flatten(1)
    if fields.patch_order == "channels_first" and weight.dim() == 2 and weight.shape[1] == patch * patch * chans:
        weight = weight.unflatten(1, (patch, patch, chans)).permute(0, 3, 1, 2)
    return weight
