"""What a Dynamic Vision Transformer's weights, under our keys, say about the model they are from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitfast.weights.t2t_vit_state import tokens_to_token_fields
from vitfast.weights.transformer_state import NUMBER, block_fields, grid_of, rows_of

_MAX_CONVOLUTIONS = 16


def dvt_fields_of_state(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the fields of ``DVTFields`` that the weights determine, with ``num_exits`` and ``grid_sizes``.

    What cannot be told, because weights are missing or have another shape, is left out: always the strides, the
    paddings and the image size; without ``relation_reuse`` the number of heads, too.
    """
    exits = {int(match[1]) for key in state if (match := re.match(rf"exits\.{NUMBER}\.", key))}
    if not exits:
        return {}
    fields = block_fields(state, "exits.0.")
    fields |= {"num_exits": len(exits), "num_classes": rows_of(state, f"exits.{max(exits)}.head.weight")}
    grids = tuple(grid_of(state.get(f"exits.{index}.pos_embed"), 1) for index in sorted(exits))
    if all(grids):
        fields["grid_sizes"] = grids
    patches = [_patch_fields(state, index) for index in sorted(exits)]
    for name in ("backbone", "in_chans", "token_dim"):
        if name in patches[0]:
            fields[name] = patches[0][name]
    if all("patch_size" in patch for patch in patches):
        fields["patch_sizes"] = tuple(patch["patch_size"] for patch in patches)
    return fields | _reuse_fields(state, fields.get("depth", 0))


def _patch_fields(state: Mapping[str, Tensor], index: int) -> dict[str, Any]:
    prefix = f"exits.{index}.patch_embed."
    projection = state.get(f"{prefix}proj.weight")
    if projection is not None and projection.dim() == 4:
        return {"backbone": "vit", "in_chans": projection.shape[1], "patch_size": projection.shape[2]}
    convolutions = [
        weight
        for key, weight in state.items()
        if re.fullmatch(rf"{re.escape(prefix)}{NUMBER}\.weight", key) and weight.dim() == 4 and weight.shape[2] == 3
    ]
    if 1 < len(convolutions) < _MAX_CONVOLUTIONS:  # all but the first halve the grid, see ``ConvStem``
        return {
            "backbone": "conv_vit",
            "in_chans": state.get(f"{prefix}0.weight", convolutions[0]).shape[1],
            "patch_size": 1 << (len(convolutions) - 1),
        }
    fields = tokens_to_token_fields(state, prefix)
    if "tokens_type" in fields:
        fields["backbone"] = "t2t_vit" if fields["tokens_type"] == "performer" else "t2t_vit_t"
    return fields


def _reuse_fields(state: Mapping[str, Tensor], depth: int) -> dict[str, Any]:
    features, relations = "exits.1.blocks.0.feature_reuse.mlp.", state.get("exits.1.relation_reuse.mlp.0.weight")
    fields: dict[str, Any] = {
        "feature_reuse": f"{features}fc1.weight" in state,
        "relation_reuse": relations is not None,
    }
    if fields["feature_reuse"]:
        fields["reuse_hidden_dim"] = rows_of(state, f"{features}fc1.weight")
        fields["reuse_dim"] = rows_of(state, f"{features}fc2.weight")
    if relations is not None and relations.dim() == 4 and depth:
        fields["num_heads"] = relations.shape[1] // depth
    return fields
