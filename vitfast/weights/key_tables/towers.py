"""DINOv2, DINOv3, CLIP and SigLIP image towers: the original files but for SigLIP's, and Hugging Face's of all.

A file may hold the text tower as well; its keys are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vitfast.errors import UserError
from vitfast.weights.key_tables.huggingface import QKV, read_config_fields
from vitfast.weights.key_tables.key_table import KeyTable, Rule, affine, stacked_affine

_TEXT = (r"text_model\..+", r"text_projection(\..+)?", r"logit_scale", r"logit_bias", r".+\.position_ids")


def _as_token(tensor: Tensor) -> Tensor:
    """``[C]`` -> ``[1, 1, C]``."""
    return tensor.reshape(1, 1, -1)


def _as_positions(tensor: Tensor) -> Tensor:
    """``[N, C]`` -> ``[1, N, C]``."""
    return tensor.unsqueeze(0)


def _first(tensor: Tensor) -> Tensor:
    """``[1, N, C]`` -> ``[N, C]``."""
    return tensor[0]


def _add_class_position(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Adds the position of the class token to it, as timm does, where there are registers, which have no position."""
    token, positions = state.get("cls_token"), state.get("pos_embed")
    if "reg_token" not in state or token is None or positions is None or positions.dim() != 3:
        return state
    first = positions[:, :1]
    return state if token.shape != first.shape else state | {"cls_token": token + first, "pos_embed": positions[:, 1:]}


def _add_head_bias(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Adds a bias of zeros to CLIP's projection, which is the head."""
    weight = state.get("head.weight")
    return state if weight is None or weight.dim() != 2 else state | {"head.bias": torch.zeros(len(weight))}


def _split_pooling(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Splits the rows q, k, v of SigLIP's attention pooling into q, and k with v."""
    state = dict(state)
    for kind in ("weight", "bias"):
        stacked = state.pop(f"attn_pool.in_proj.{kind}", None)
        if stacked is not None and stacked.dim():
            third = len(stacked) // 3
            state |= {f"attn_pool.q.{kind}": stacked[:third], f"attn_pool.kv.{kind}": stacked[third:]}
    return state


def _read_vision_fields(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the configuration of the image tower, which that of a model with a text tower contains."""
    vision = config.get("vision_config", config)
    return read_config_fields(tensors, vision if isinstance(vision, Mapping) else {})


# github.com/facebookresearch/dinov2
DINOV2 = KeyTable(
    name="DINOv2",
    signature=(r"patch_embed\.proj\.weight", r"blocks\.\d+\.ls1\.gamma", r"mask_token"),
    rules=(
        Rule(r"register_tokens", "reg_token"),
        *affine(r"blocks\.(\d+)\.mlp\.w12", r"blocks.\1.mlp.fc1"),
        *affine(r"blocks\.(\d+)\.mlp\.w3", r"blocks.\1.mlp.fc2"),
        Rule(r"(.+)", r"\1"),
    ),
    fields={"layer_norm_eps": 1e-6, "gelu": "erf", "position_interpolation": "bicubic"},
    convert=_add_class_position,
    ignored=(r"mask_token",),
)

_DINOV2_ROOT = r"(?:dinov2\.|dinov2_with_registers\.)?"
_DINOV2_BLOCK = _DINOV2_ROOT + r"encoder\.layer\.(\d+)\."

HUGGINGFACE_DINOV2 = KeyTable(
    name="Hugging Face DINOv2",
    signature=(
        _DINOV2_ROOT + r"embeddings\.patch_embeddings\.projection\.weight",
        _DINOV2_BLOCK + r"layer_scale1\.lambda1",
    ),
    rules=(
        Rule(_DINOV2_ROOT + r"embeddings\.cls_token", "cls_token"),
        Rule(_DINOV2_ROOT + r"embeddings\.register_tokens", "reg_token"),
        Rule(_DINOV2_ROOT + r"embeddings\.position_embeddings", "pos_embed"),
        *affine(_DINOV2_ROOT + r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
        *affine(_DINOV2_BLOCK + r"norm([12])", r"blocks.\1.norm\2"),
        *stacked_affine(
            [_DINOV2_BLOCK + rf"attention\.(?:attention\.{word}|{letter}_proj)" for word, letter in QKV],
            r"blocks.\1.attn.qkv",
        ),
        *affine(_DINOV2_BLOCK + r"attention\.(?:output\.dense|o_proj)", r"blocks.\1.attn.proj"),
        *stacked_affine(
            [_DINOV2_BLOCK + rf"mlp\.{name}_proj" for name in ("gate", "up")],
            r"blocks.\1.mlp.fc1",
        ),
        *affine(_DINOV2_BLOCK + r"mlp\.(?:fc1|weights_in)", r"blocks.\1.mlp.fc1"),
        *affine(_DINOV2_BLOCK + r"mlp\.(?:fc2|weights_out|down_proj)", r"blocks.\1.mlp.fc2"),
        Rule(_DINOV2_BLOCK + r"layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
        *affine(_DINOV2_ROOT + r"layernorm", "norm"),
    ),
    # Dinov2Config's defaults, which config.json overrides
    fields={"layer_norm_eps": 1e-6, "gelu": "erf", "position_interpolation": "bicubic"},
    read_fields=read_config_fields,
    convert=_add_class_position,
    ignored=(_DINOV2_ROOT + r"embeddings\.mask_token",),
    extra_head_layers=(r"classifier\..+",),  # on the class token and the mean of the patches
)


def _split_qkv_bias(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Splits DINOv3's biases of q, k and v, of which a mask sets k's to zero."""
    state = dict(state)
    for key in [key for key in state if key.endswith("attn.qkv.bias")]:
        bias, mask = state[key], state.pop(f"{key}_mask", None)
        if bias.dim() != 1 or len(bias) % 3 or (mask is not None and mask.shape != bias.shape):
            continue
        bias = state[key] = bias if mask is None else torch.where(mask == 0, 0, bias)
        q, k, v = bias.chunk(3)
        if not k.any():
            del state[key]
            state |= {key.replace("qkv.bias", "q_bias"): q, key.replace("qkv.bias", "v_bias"): v}
    return state


def _join_parts(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Joins both halves of a SwiGLU and, where k has one, the biases of q, k and v; drops registers of size 0."""
    state = {key: tensor for key, tensor in state.items() if key != "reg_token" or tensor.numel()}
    for key in [key for key in state if key.endswith("attn.k_bias")]:
        names = [key.replace("k_bias", f"{letter}_bias") for letter in "qkv"]
        if all(name in state for name in names):
            state[key.replace("k_bias", "qkv.bias")] = torch.cat([state.pop(name).flatten() for name in names])
    for key in [key for key in state if ".mlp.gate." in key]:
        up = key.replace("gate", "fc1")
        if up in state and state[up].shape == state[key].shape and state[up].dim():
            state[up] = torch.cat([state.pop(key), state[up]])
    return state


def _read_dinov3_fields(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    is_gated = any(key.endswith("mlp.gate_proj.weight") for key in tensors)
    for name, value in {"rope_theta": 100.0, **({"hidden_act": "silu"} if is_gated else {})}.items():
        if config.get(name, value) != value:
            raise UserError(
                f"config.json has {name}={config[name]!r}, which vitfast does not support in a DINOv3; supported: "
                f"{value!r}"
            )
    fields = read_config_fields(tensors, {key: config[key] for key in config if key != "hidden_act" or not is_gated})
    return fields | {"key_bias": any(key.endswith("k_proj.bias") for key in tensors)}


_DINOV3_FIELDS = {"layer_norm_eps": 1e-5, "gelu": "erf", "rotary": "dinov3"}

# github.com/facebookresearch/dinov3
DINOV3 = KeyTable(
    name="DINOv3",
    signature=(r"patch_embed\.proj\.weight", r"blocks\.\d+\.ls1\.gamma", r"storage_tokens"),
    rules=(
        Rule(r"storage_tokens", "reg_token"),
        *stacked_affine([rf"blocks\.(\d+)\.mlp\.w{part}" for part in (1, 2)], r"blocks.\1.mlp.fc1"),
        *affine(r"blocks\.(\d+)\.mlp\.w3", r"blocks.\1.mlp.fc2"),
        Rule(r"(.+)", r"\1"),
    ),
    fields=_DINOV3_FIELDS,
    convert=_split_qkv_bias,
    ignored=(r"mask_token", r"rope_embed\.periods", r"local_cls_norm\..+"),
)

_DINOV3_BLOCK = r"(?:model\.)?layer\.(\d+)\."

HUGGINGFACE_DINOV3 = KeyTable(
    name="Hugging Face DINOv3",
    signature=(r"embeddings\.patch_embeddings\.weight", _DINOV3_BLOCK + r"layer_scale1\.lambda1"),
    rules=(
        Rule(r"embeddings\.cls_token", "cls_token"),
        Rule(r"embeddings\.register_tokens", "reg_token"),
        *affine(r"embeddings\.patch_embeddings", "patch_embed.proj"),
        *affine(_DINOV3_BLOCK + r"norm([12])", r"blocks.\1.norm\2"),
        *(
            Rule(_DINOV3_BLOCK + rf"attention\.{letter}_proj\.weight", r"blocks.\1.attn.qkv.weight", part=part, parts=3)
            for part, letter in enumerate("qkv")
        ),
        Rule(_DINOV3_BLOCK + r"attention\.([qkv])_proj\.bias", r"blocks.\1.attn.\2_bias"),
        *affine(_DINOV3_BLOCK + r"attention\.o_proj", r"blocks.\1.attn.proj"),
        Rule(_DINOV3_BLOCK + r"layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
        *affine(_DINOV3_BLOCK + r"mlp\.down_proj", r"blocks.\1.mlp.fc2"),
        *affine(_DINOV3_BLOCK + r"mlp\.gate_proj", r"blocks.\1.mlp.gate"),
        *affine(_DINOV3_BLOCK + r"mlp\.up_proj", r"blocks.\1.mlp.fc1"),
        *affine(r"norm", "norm"),
    ),
    fields=_DINOV3_FIELDS,
    read_fields=_read_dinov3_fields,
    convert=_join_parts,
    ignored=(r"embeddings\.mask_token",),
)

# github.com/openai/CLIP and open_clip; the activation is not stored, so the name determines it
_CLIP_BLOCK = r"visual\.transformer\.resblocks\.(\d+)\."

CLIP = KeyTable(
    name="CLIP",
    signature=(r"visual\.class_embedding", _CLIP_BLOCK + r"ln_1\.weight"),
    rules=(
        Rule(r"visual\.class_embedding", "cls_token", _as_token, inverse=Tensor.flatten),
        Rule(r"visual\.positional_embedding", "pos_embed", _as_positions, inverse=_first),
        Rule(r"visual\.conv1\.weight", "patch_embed.proj.weight"),
        *affine(r"visual\.ln_pre", "norm_pre"),
        *affine(_CLIP_BLOCK + r"ln_([12])", r"blocks.\1.norm\2"),
        *(Rule(_CLIP_BLOCK + rf"attn\.in_proj_{kind}", rf"blocks.\1.attn.qkv.{kind}") for kind in ("weight", "bias")),
        *affine(_CLIP_BLOCK + r"attn\.out_proj", r"blocks.\1.attn.proj"),
        *affine(_CLIP_BLOCK + r"mlp\.c_fc", r"blocks.\1.mlp.fc1"),
        *affine(_CLIP_BLOCK + r"mlp\.c_proj", r"blocks.\1.mlp.fc2"),
        *affine(r"visual\.ln_post", "norm"),
        Rule(r"visual\.proj", "head.weight", Tensor.t, inverse=Tensor.t),
    ),
    fields={"layer_norm_eps": 1e-5, "position_interpolation": "bicubic_antialias"},
    convert=_add_head_bias,
    ignored=(
        *_TEXT,
        *(r"transformer\..+", r"token_embedding\..+", r"positional_embedding", r"ln_final\..+"),
        *(r"input_resolution", r"context_length", r"vocab_size", r"attn_mask"),
    ),
)

_VISION = r"(?:vision_model\.)*"
_VISION_BLOCK = _VISION + r"encoder\.layers\.(\d+)\."
_VISION_RULES = (
    *affine(_VISION + r"embeddings\.patch_embedding", "patch_embed.proj"),
    Rule(_VISION + r"embeddings\.position_embedding\.weight", "pos_embed", _as_positions, inverse=_first),
    *affine(_VISION_BLOCK + r"layer_norm([12])", r"blocks.\1.norm\2"),
    *stacked_affine([_VISION_BLOCK + rf"self_attn\.{name}_proj" for name in "qkv"], r"blocks.\1.attn.qkv"),
    *affine(_VISION_BLOCK + r"self_attn\.out_proj", r"blocks.\1.attn.proj"),
    *affine(_VISION_BLOCK + r"mlp\.fc([12])", r"blocks.\1.mlp.fc\2"),
    *affine(_VISION + r"post_layernorm", "norm"),
)

HUGGINGFACE_CLIP = KeyTable(
    name="Hugging Face CLIP",
    signature=(_VISION + r"embeddings\.class_embedding", _VISION + r"pre_layrnorm\.weight"),
    rules=(
        Rule(_VISION + r"embeddings\.class_embedding", "cls_token", _as_token, inverse=Tensor.flatten),
        *affine(_VISION + r"pre_layrnorm", "norm_pre"),
        *_VISION_RULES,
        Rule(r"visual_projection\.weight", "head.weight"),
    ),
    # CLIPVisionConfig's defaults, which config.json overrides
    fields={"layer_norm_eps": 1e-5, "gelu": "quick", "position_interpolation": "bicubic"},
    read_fields=_read_vision_fields,
    convert=_add_head_bias,
    ignored=_TEXT,
)

HUGGINGFACE_SIGLIP = KeyTable(
    name="Hugging Face SigLIP",
    signature=(_VISION + r"head\.probe", _VISION + r"embeddings\.patch_embedding\.weight"),
    rules=(
        *_VISION_RULES,
        Rule(_VISION + r"head\.probe", "attn_pool.latent"),
        Rule(_VISION + r"head\.attention\.in_proj_(weight|bias)", r"attn_pool.in_proj.\1"),
        *affine(_VISION + r"head\.attention\.out_proj", "attn_pool.proj"),
        *affine(_VISION + r"head\.layernorm", "attn_pool.norm"),
        *affine(_VISION + r"head\.mlp\.fc([12])", r"attn_pool.mlp.fc\1"),
    ),
    # SiglipVisionConfig's defaults, which config.json overrides
    fields={"layer_norm_eps": 1e-6, "gelu": "tanh", "position_interpolation": "bicubic"},
    read_fields=_read_vision_fields,
    convert=_split_pooling,
    ignored=_TEXT,
)

# a DINOv3 also has all keys of a DINOv2, which has all keys of a ViT of timm
TABLES: tuple[KeyTable, ...] = (
    *(DINOV3, HUGGINGFACE_DINOV3),
    *(DINOV2, HUGGINGFACE_DINOV2),
    *(CLIP, HUGGINGFACE_CLIP, HUGGINGFACE_SIGLIP),
)
