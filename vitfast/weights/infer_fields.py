"""Infers model fields from the keys and shapes of weights under vitfast's keys.

What cannot be inferred, because weights are missing or misshapen, is left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from vitfast.models.convit import ConViTFields
from vitfast.models.dvt_fields import DVTFields
from vitfast.models.hybrid import HybridFields
from vitfast.models.model_fields import ModelFields
from vitfast.models.t2t_vit import T2TViTFields
from vitfast.models.vit import ViTFields

NUMBER = r"(\d{1,6})"  # index of a layer; Python refuses to parse thousands of digits

State = Mapping[str, Tensor]

_MAX_CONVOLUTIONS = 16
_UNIT = re.compile(r"patch_embed\.backbone\.stages\.(\d{1,3})\.blocks\.(\d{1,3})\.")


def infer_fields(fields_type: type[ModelFields] | None, state: State) -> dict[str, Any]:
    """Returns the fields that weights determine for a model of this type; empty for a type without a reader."""
    reader, _ = _READERS.get(fields_type, (None, frozenset()))
    return {} if reader is None else reader(state)


def uninferable_fields(fields: ModelFields, state: State) -> list[str]:
    """Lists the fields that a complete set of weights determines and this one does not.

    Args:
        fields: those of the model that the weights claim to fit.
        state: the weights.
    """
    _, always = _READERS.get(type(fields), (None, frozenset()))
    if not getattr(fields, "learned_positions", True):
        always -= {"img_size"}  # no weight has a size that depends on it
    return sorted(always - infer_fields(type(fields), state).keys())


def _vit_fields(state: State) -> dict[str, Any]:
    fields = _block_fields(state)
    fields["head_type"] = "norm_linear" if "fc_norm.weight" in state and "norm.weight" not in state else "linear"
    fields["num_classes"] = _size(state, "head.weight", 0)
    fields["head_hidden_dim"] = _size(state, "pre_logits.fc.weight", 0)
    registers = state.get("reg_token")
    fields |= {
        "class_token": "cls_token" in state,
        "register_tokens": registers.shape[1] if registers is not None and registers.dim() == 3 else 0,
        "pre_norm": "norm_pre.weight" in state,
        "learned_positions": "pos_embed" in state,
        "attention_norm": _has(state, r"attn\.norm\.weight"),
        "mlp_norm": _has(state, r"mlp\.norm\.weight"),
    }
    if _has(state, r"attn\.q_bias"):
        fields["key_bias"] = False
    projection, positions = state.get("patch_embed.proj.weight"), state.get("pos_embed")
    if projection is not None and projection.dim() == 4:
        fields |= {"patch_order": "channels_first", "in_chans": projection.shape[1], "patch_size": projection.shape[2]}
    elif projection is not None and projection.dim() == 2:
        fields |= {"patch_order": "channels_last", **_pixels(projection.shape[1])}
    num_tokens = fields["class_token"] + fields["register_tokens"]
    # distillation_token, tokens with a position before the patches, prefix_positions
    candidates = [("none", num_tokens, True), ("none", 0, False)]
    if "dist_token" in state:
        candidates = [("after_class", 2, True), ("last", 1, True)]
    elif positions is None:
        fields["distillation_token"] = "none"
    for distillation_token, num_prefix_tokens, prefix_positions in candidates:
        if grid_size := _grid_size(positions, num_prefix_tokens):
            fields |= {"distillation_token": distillation_token, "prefix_positions": prefix_positions}
            if "patch_size" in fields:
                fields["img_size"] = grid_size * fields["patch_size"]
            break
    return fields


def _hybrid_fields(state: State) -> dict[str, Any]:
    """Includes ``grid_size``, because several image sizes give the same grid of patches."""
    fields = _vit_fields(state)
    for name in ("img_size", "in_chans", "patch_order"):  # properties of images; here patches consist of features
        fields.pop(name, None)
    if grid_size := _grid_size(state.get("pos_embed"), 1):
        fields["grid_size"] = grid_size
    backbone = "patch_embed.backbone."
    root = state.get(f"{backbone}stem.conv.weight", state.get(f"{backbone}conv.weight"))
    if root is not None and root.dim() == 4:
        fields |= {"resnet_width": root.shape[0], "in_chans": root.shape[1]}
    layers: dict[int, int] = {}
    for key in state:
        if match := _UNIT.match(key):
            stage, block = int(match[1]), int(match[2])
            layers[stage] = max(layers.get(stage, 0), block + 1)
    if sorted(layers) == list(range(len(layers))):
        fields["resnet_layers"] = tuple(layers[stage] for stage in sorted(layers))
    return fields


def _convit_fields(state: State) -> dict[str, Any]:
    fields = _vit_fields(state)
    for name in (
        "img_size",
        "distillation_token",
        "prefix_positions",
    ):  # the position embeddings do not include the class token
        fields.pop(name, None)
    grid_size = _grid_size(state.get("pos_embed"), 0)
    if grid_size and "patch_size" in fields:
        fields["img_size"] = grid_size * fields["patch_size"]
    gate = rf"blocks\.{NUMBER}\.attn\.gating_param"
    gates = [int(match[1]) for key in state if (match := re.fullmatch(gate, key))]
    if gates:
        fields["local_up_to_layer"] = max(gates) + 1
        key = f"blocks.{max(gates)}.attn.pos_proj.weight"
        if columns := _size(state, key, 1):
            fields |= {"num_heads": _size(state, key, 0), "locality_dim": columns // 3}
    return fields


def _t2t_vit_fields(state: State) -> dict[str, Any]:
    """Includes ``grid_size``: the image size is unknown, because stride and padding are not stored."""
    fields = _block_fields(state) | {"num_classes": _size(state, "head.weight", 0)}
    if grid_size := _grid_size(state.get("pos_embed"), 1):
        fields["grid_size"] = grid_size
    return fields | _tokens_to_token_fields(state, "tokens_to_token.")


def _dvt_fields(state: State) -> dict[str, Any]:
    """Includes ``num_exits`` and ``grid_sizes``."""
    exits = {int(match[1]) for key in state if (match := re.match(rf"exits\.{NUMBER}\.", key))}
    if not exits:
        return {}
    fields = _block_fields(state, "exits.0.")
    fields |= {"num_exits": len(exits), "num_classes": _size(state, f"exits.{max(exits)}.head.weight", 0)}
    grids = tuple(_grid_size(state.get(f"exits.{index}.pos_embed"), 1) for index in sorted(exits))
    if all(grids):
        fields["grid_sizes"] = grids
    patches = [_exit_patch_fields(state, index) for index in sorted(exits)]
    fields |= {name: patches[0][name] for name in ("backbone", "in_chans", "token_dim") if name in patches[0]}
    if all("patch_size" in patch for patch in patches):
        fields["patch_sizes"] = tuple(patch["patch_size"] for patch in patches)

    features, relations = "exits.1.blocks.0.feature_reuse.mlp.", state.get("exits.1.relation_reuse.mlp.0.weight")
    fields |= {"feature_reuse": f"{features}fc1.weight" in state, "relation_reuse": relations is not None}
    if fields["feature_reuse"]:
        fields["reuse_hidden_dim"] = _size(state, f"{features}fc1.weight", 0)
        fields["reuse_dim"] = _size(state, f"{features}fc2.weight", 0)
    if relations is not None and relations.dim() == 4 and fields.get("depth"):
        fields["num_heads"] = relations.shape[1] // fields["depth"]
    return fields


def _exit_patch_fields(state: State, index: int) -> dict[str, Any]:
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
    fields = _tokens_to_token_fields(state, prefix)
    if "tokens_type" in fields:
        fields["backbone"] = "t2t_vit" if fields["tokens_type"] == "performer" else "t2t_vit_t"
    return fields


def _tokens_to_token_fields(state: State, prefix: str) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    attention = f"{prefix}attention1."
    if f"{attention}w" in state:
        fields["tokens_type"] = "performer"
    elif f"{attention}attn.qkv.weight" in state:
        fields["tokens_type"] = "transformer"
    if token_dim := _size(state, f"{prefix}project.weight", 1) // 9:
        fields["token_dim"] = token_dim
    norm = state.get(f"{attention}norm1.weight")
    if norm is not None and norm.dim() == 1:
        fields |= _pixels(len(norm))
    return fields


def _block_fields(state: State, prefix: str = "") -> dict[str, Any]:
    """Returns ``depth``, ``embed_dim``, ``mlp_ratio`` and ``qkv_bias`` of the blocks under a prefix."""
    fields: dict[str, Any] = {}
    root = rf"{re.escape(prefix)}blocks\.{NUMBER}\."
    blocks = {int(match[1]) for key in state if (match := re.match(root, key))}
    if blocks:
        # a hostile file may number its only block 999999
        fields["depth"] = max(blocks) + 1 if max(blocks) < len(state) else len(blocks)
        fields["qkv_bias"] = any(re.fullmatch(root + r"attn\.((qkv|qk|v)\.bias|[qv]_bias)", key) for key in state)
    key = next((key for key in state if re.fullmatch(root + r"mlp\.fc1\.weight", key)), "")
    mlp, fc2 = state.get(key), state.get(key.replace("fc1", "fc2"))
    if mlp is not None and mlp.dim() == 2 and mlp.shape[1]:
        fields |= {"embed_dim": mlp.shape[1], "mlp_ratio": mlp.shape[0] / mlp.shape[1]}
        if fc2 is not None and fc2.dim() == 2:
            fields["gated_mlp"] = fc2.shape[1] < mlp.shape[0]
    return fields


def _has(state: State, pattern: str) -> bool:
    """Returns whether a block has a weight whose name matches."""
    return any(re.fullmatch(rf"blocks\.{NUMBER}\.{pattern}", key) for key in state)


def _size(state: State, key: str, dim: int) -> int:
    """Returns the number of rows (``dim`` 0) or columns (1) of a matrix, 0 if there is none."""
    weight = state.get(key)
    return weight.shape[dim] if weight is not None and weight.dim() == 2 else 0


def _grid_size(positions: Tensor | None, num_prefix_tokens: int) -> int:
    """Returns G of position embeddings ``[1, T + G * G, C]``; 0 if the number of patches is not square."""
    if positions is None or positions.dim() != 3:
        return 0
    patches = max(positions.shape[1] - num_prefix_tokens, 0)
    grid_size = math.isqrt(patches)
    return grid_size if grid_size**2 == patches else 0


def _pixels(numel: int) -> dict[str, int]:
    """Returns ``in_chans`` and ``patch_size`` of a flattened square patch with 3, 1 or 4 channels."""
    for in_chans in (3, 1, 4):
        patch_size = math.isqrt(numel // in_chans)
        if patch_size and patch_size**2 * in_chans == numel:
            return {"in_chans": in_chans, "patch_size": patch_size}
    return {}


_SIZES = frozenset({"embed_dim", "depth", "patch_size"})

# for each fields class: what infers its fields; those that complete weights always determine and that set the size
_READERS: Mapping[type[ModelFields] | None, tuple[Callable[[State], dict[str, Any]], frozenset[str]]] = {
    ViTFields: (_vit_fields, _SIZES | {"img_size"}),
    HybridFields: (_hybrid_fields, _SIZES | {"grid_size", "resnet_width", "resnet_layers"}),
    ConViTFields: (_convit_fields, _SIZES | {"img_size"}),
    T2TViTFields: (_t2t_vit_fields, _SIZES | {"grid_size"}),
    DVTFields: (_dvt_fields, frozenset({"embed_dim", "depth", "num_exits", "patch_sizes", "grid_sizes"})),
}
