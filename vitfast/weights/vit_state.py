"""What a ViT's weights, under our keys, say about the model they are from."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitfast.models.vit_fields import ViTFields


def fields_of_state(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the fields of ``ViTFields`` that the weights determine.

    What cannot be told, because weights are missing or have another shape, is left out. The number of heads never can.
    """
    fields: dict[str, Any] = {}
    blocks = [int(match[1]) for key in state if (match := re.match(r"blocks\.(\d+)\.", key))]
    if blocks:
        fields["depth"] = max(blocks) + 1
        fields["qkv_bias"] = any(re.fullmatch(r"blocks\.\d+\.attn\.qkv\.bias", key) for key in state)
    mlp = next((state[key] for key in state if re.fullmatch(r"blocks\.\d+\.mlp\.fc1\.weight", key)), None)
    if mlp is not None and mlp.dim() == 2:
        fields["embed_dim"] = mlp.shape[1]
        fields["mlp_ratio"] = mlp.shape[0] / mlp.shape[1]
    fields["head_type"] = "norm_linear" if "fc_norm.weight" in state and "norm.weight" not in state else "linear"
    head = state.get("head.weight")
    fields["num_classes"] = len(head) if head is not None and head.dim() == 2 else 0
    hidden = state.get("pre_logits.fc.weight")
    fields["head_hidden_dim"] = len(hidden) if hidden is not None and hidden.dim() == 2 else 0
    return fields | _patch_fields(state)


def _patch_fields(state: Mapping[str, Tensor]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    projection, positions = state.get("patch_embed.proj.weight"), state.get("pos_embed")
    if projection is not None and projection.dim() == 4:
        fields |= {"patch_order": "channels_first", "in_chans": projection.shape[1], "patch_size": projection.shape[2]}
    elif projection is not None and projection.dim() == 2:
        # rows, columns and channels are one dimension here; of the channels that images have, one gives a square
        fields["patch_order"] = "channels_last"
        for in_chans in (3, 1, 4):
            patch_size = math.isqrt(projection.shape[1] // in_chans)
            if patch_size**2 * in_chans == projection.shape[1]:
                fields |= {"in_chans": in_chans, "patch_size": patch_size}
                break
    if positions is not None and positions.dim() == 3:
        tokens = {"none": 1} if "dist_token" not in state else {"after_class": 2, "last": 1}
        for distillation_token, prefix in tokens.items():
            grid_size = math.isqrt(max(positions.shape[1] - prefix, 0))
            if grid_size and grid_size**2 + prefix == positions.shape[1]:
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
        return weight.unflatten(1, (patch, patch, chans)).permute(0, 3, 1, 2)
    return weight
