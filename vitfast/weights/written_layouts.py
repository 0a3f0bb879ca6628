"""Weights in the original and in Hugging Face's layouts of image towers: key tables in reverse, and ``config.json``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vitfast.errors import UserError
from vitfast.layers.rotary import ROTARY_SCHEMES
from vitfast.models.model_fields import ModelFields
from vitfast.models.vit import ViTFields
from vitfast.weights.key_tables import towers
from vitfast.weights.key_tables.key_table import KeyTable, write_keys

Layout = Literal["timm", "original", "huggingface", "swav", "vissl"]
State = dict[str, Tensor]

_HIDDEN_ACTS = {"erf": "gelu", "tanh": "gelu_pytorch_tanh", "quick": "quick_gelu"}


@dataclass(frozen=True)
class WrittenLayout:
    """How the weights of one kind of model are written.

    Attributes:
        layout: of ``save_weights``.
        table: the key table that reads it.
        fields: the values that the fields of a model must have.
        revert: the inverse of the table's ``convert``; also adds weights that the format has beside those of the model.
        skipped_rules: pattern of the table's rules that are not applied in reverse.
        config: returns the content of ``config.json``; None: there is none.
        prefix: of the keys, except of those that begin with ``visual_projection``.
    """

    layout: Layout
    table: KeyTable
    fields: Mapping[str, Any]
    revert: Callable[[State, ViTFields], State]
    skipped_rules: str = "$^"
    config: Callable[[ViTFields], dict[str, Any]] | None = None
    prefix: str = ""

    def write(self, state: State, fields: ViTFields) -> State:
        """Converts weights under vitfast's keys."""
        rules = [rule for rule in self.table.rules if not re.search(self.skipped_rules, rule.pattern)]
        written = write_keys(self.revert(dict(state), fields), rules)
        return {key if key.startswith("visual_") else self.prefix + key: tensor for key, tensor in written.items()}

    def differences(self, fields: ViTFields) -> list[str]:
        """Lists the fields that this layout cannot express."""
        found = ((name, getattr(fields, name), value) for name, value in self.fields.items())
        listed = [f"{name}={given!r} instead of {value!r}" for name, given, value in found if given != value]
        if "layer_scale" not in self.fields and not fields.layer_scale:
            listed.append("layer_scale=0 instead of a positive number")
        return listed


def find_layout(layout: Layout, fields: ModelFields, model_name: str) -> WrittenLayout:
    """Returns the layout that expresses all of a model's fields.

    Raises:
        UserError: there is none; the message names the fields that the nearest one cannot express.
    """
    candidates = []
    if isinstance(fields, ViTFields):
        candidates = [(one.differences(fields), one) for one in _layouts(fields) if one.layout == layout]
    if not candidates:
        known = ", ".join(("timm", "original", "huggingface"))
        raise UserError(f"layout={layout!r} cannot be written for {model_name}; layouts: {known}, of image towers")
    different, nearest = min(candidates, key=lambda pair: len(pair[0]))
    if different:
        raise UserError(
            f"layout={layout!r} cannot be written for {model_name}: {nearest.table.name} would need a model without "
            f"{', '.join(different)}; use layout='timm'"
        )
    return nearest


def _layouts(fields: ViTFields) -> tuple[WrittenLayout, ...]:
    """Returns all layouts for a model; some fields of it determine details."""
    shared = {
        **{"distillation_token": "none", "head_type": "linear", "head_hidden_dim": 0, "mlp_norm": False},
        **{"attention_norm": False, "rotary": "none", "learned_positions": True, "class_token": True},
        **{"pre_norm": False, "num_classes": 0, "key_bias": True, "prefix_positions": True},
    }
    dinov2 = {**shared, "prefix_positions": not fields.register_tokens}
    dinov3 = {**shared, "rotary": "dinov3", "learned_positions": False, "key_bias": False, "gelu": "erf"}
    del dinov3["prefix_positions"]
    plain = {**shared, "layer_scale": 0.0, "gated_mlp": False, "register_tokens": 0, "qkv_bias": True}
    clip = {**plain, "pre_norm": True, "pooling": "token", "num_classes": fields.num_classes}
    siglip = {**plain, "class_token": False, "pooling": "map"}
    published = {"layer_norm_eps": 1e-6, "gelu": "erf"}
    separate = "$^" if fields.gated_mlp else r"mlp\\\.w"
    return (
        WrittenLayout("original", towers.DINOV2, {**dinov2, **published}, _revert_dinov2, separate),
        WrittenLayout(
            *(
                "huggingface",
                towers.HUGGINGFACE_DINOV2,
                dinov2,
                _revert_huggingface_dinov2,
                r"mlp.*_proj$|mlp.*_proj\\\.",
            ),
            config=_dinov2_config,
        ),
        WrittenLayout("original", towers.DINOV3, {**dinov3, "layer_norm_eps": 1e-5}, _revert_dinov3, separate),
        WrittenLayout(
            *("huggingface", towers.HUGGINGFACE_DINOV3, dinov3, _revert_huggingface_dinov3),
            config=_dinov3_config,
        ),
        WrittenLayout("original", towers.CLIP, {**clip, "layer_norm_eps": 1e-5}, _revert_clip),
        WrittenLayout(
            *("huggingface", towers.HUGGINGFACE_CLIP, clip, _revert_clip),
            config=_clip_config,
            prefix="vision_model.",
        ),
        WrittenLayout(
            *("huggingface", towers.HUGGINGFACE_SIGLIP, siglip, _revert_siglip),
            config=_siglip_config,
            prefix="vision_model.",
        ),
    )


def _revert_dinov2(state: State, fields: ViTFields) -> State:
    """Gives the class token a position of zeros where there are registers, and adds the token of masked patches."""
    if fields.register_tokens:
        state["pos_embed"] = torch.cat([torch.zeros_like(state["cls_token"]), state["pos_embed"]], dim=1)
    return state | {"mask_token": torch.zeros(1, fields.embed_dim)}


def _revert_huggingface_dinov2(state: State, fields: ViTFields) -> State:
    state = _revert_dinov2(state, fields)
    state["embeddings.mask_token"] = state.pop("mask_token")
    names = {"fc1": "weights_in", "fc2": "weights_out"} if fields.gated_mlp else {}
    for ours, theirs in names.items():
        pattern, key = rf"blocks\.(\d+)\.mlp\.{ours}\.", rf"encoder.layer.\1.mlp.{theirs}."
        state = {re.sub(pattern, key, name): tensor for name, tensor in state.items()}
    return state


def _revert_dinov3(state: State, fields: ViTFields) -> State:
    """Joins the biases of q and v to those of q, k and v, with their mask."""
    dim, head_dim = fields.embed_dim, fields.embed_dim // fields.num_heads
    for key in [key for key in state if key.endswith("attn.q_bias")]:
        q, v = state.pop(key), state.pop(key.replace("q_bias", "v_bias"))
        name = key.replace("q_bias", "qkv.bias")
        state[name] = torch.cat([q, torch.zeros_like(q), v])
        state[f"{name}_mask"] = torch.cat([torch.ones(dim), torch.zeros(dim), torch.ones(dim)])
    periods = ROTARY_SCHEMES["dinov3"].temperature ** (torch.arange(head_dim // 4) / (head_dim // 4))
    return state | {"mask_token": torch.zeros(1, dim), "rope_embed.periods": periods}


def _revert_huggingface_dinov3(state: State, fields: ViTFields) -> State:
    for key in [key for key in state if fields.gated_mlp and ".mlp.fc1." in key]:
        state[key.replace("fc1", "gate")], state[key] = state[key].chunk(2)
    return state | {"embeddings.mask_token": torch.zeros(1, 1, fields.embed_dim)}


def _revert_clip(state: State, fields: ViTFields) -> State:
    bias = state.pop("head.bias", None)
    if bias is not None and bias.any():
        raise UserError("the head has a bias, which CLIP's projection has not; use layout='timm', or set it to zero")
    return state


def _revert_siglip(state: State, fields: ViTFields) -> State:
    for kind in ("weight", "bias"):
        parts = [state.pop(f"attn_pool.{name}.{kind}") for name in ("q", "kv")]
        state[f"attn_pool.in_proj.{kind}"] = torch.cat(parts)
    return state


def _config(fields: ViTFields, model_type: str, architecture: str, **options: Any) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": fields.embed_dim,
        "num_hidden_layers": fields.depth,
        "num_attention_heads": fields.num_heads,
        "image_size": fields.img_size,
        "patch_size": fields.patch_size,
        "num_channels": fields.in_chans,
        "layer_norm_eps": fields.layer_norm_eps,
        "hidden_act": _HIDDEN_ACTS[fields.gelu],
        "torch_dtype": "float32",
        **options,
    }


def _dinov2_config(fields: ViTFields) -> dict[str, Any]:
    options: dict[str, Any] = {"qkv_bias": fields.qkv_bias, "use_swiglu_ffn": fields.gated_mlp}
    ratio = round(fields.mlp_dim / fields.embed_dim * (0.75 if fields.gated_mlp else 1.0))
    hidden_dim = ratio * fields.embed_dim
    if fields.gated_mlp:  # of both halves: Hugging Face rounds two thirds for each up to a multiple of 8
        hidden_dim = 2 * ((hidden_dim * 2 // 3 + 7) // 8 * 8)
    if hidden_dim != fields.mlp_dim:
        raise UserError(f"mlp_ratio={fields.mlp_ratio} gives no MLP that Hugging Face can build; use layout='timm'")
    options["mlp_ratio"] = ratio
    if not fields.register_tokens:
        return _config(fields, "dinov2", "Dinov2Model", **options)
    options["num_register_tokens"] = fields.register_tokens
    return _config(fields, "dinov2_with_registers", "Dinov2WithRegistersModel", **options)


def _dinov3_config(fields: ViTFields) -> dict[str, Any]:
    return {
        **_config(fields, "dinov3_vit", "DINOv3ViTModel", key_bias=False),
        **{"query_bias": fields.qkv_bias, "value_bias": fields.qkv_bias, "use_gated_mlp": fields.gated_mlp},
        **{"num_register_tokens": fields.register_tokens, "rope_theta": ROTARY_SCHEMES["dinov3"].temperature},
        "intermediate_size": fields.mlp_dim // (2 if fields.gated_mlp else 1),
        "hidden_act": "silu" if fields.gated_mlp else "gelu",
    }


def _clip_config(fields: ViTFields) -> dict[str, Any]:
    if not fields.num_classes:
        return _config(fields, "clip_vision_model", "CLIPVisionModel", intermediate_size=fields.mlp_dim)
    sizes = {"intermediate_size": fields.mlp_dim, "projection_dim": fields.num_classes}
    return _config(fields, "clip_vision_model", "CLIPVisionModelWithProjection", **sizes)


def _siglip_config(fields: ViTFields) -> dict[str, Any]:
    return _config(fields, "siglip_vision_model", "SiglipVisionModel", intermediate_size=fields.mlp_dim)
