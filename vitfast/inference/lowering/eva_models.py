"""Lowering of timm's ``Eva``: EVA-02, DINOv3, Perception Encoder, RoPE ViT; imported only if timm is."""

from __future__ import annotations

import math

import timm.layers
import torch
from timm.layers.pos_embed_sincos import RotaryEmbeddingCat, RotaryEmbeddingDinoV3, RotaryEmbeddingMixed
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm

from vitfast.inference.ir import (
    AttentionSpec,
    BlockSpec,
    EmbeddingSpec,
    RotarySpec,
    TransformerSpec,
)
from vitfast.inference.lowering import common_layers as common
from vitfast.inference.lowering import timm_models
from vitfast.inference.lowering.module_checks import NotRecognised, Part
from vitfast.layers.rotary import axial_frequencies, patch_coordinates, rotary_tables

_MODEL = "patch_embed pos_drop patch_drop rope norm_pre blocks norm attn_pool fc_norm head_drop head".split()
_BLOCK = "norm1 attn drop_path1 norm2 mlp drop_path2".split()
_SEPARATE = ("q_proj", "k_proj", "v_proj")
_ATTENTION = ("qkv", *_SEPARATE, *"q_norm k_norm attn_drop norm gate proj proj_drop".split())
_PREFIX = ("cls_token", "reg_token")


def lower_model(part: Part) -> TransformerSpec:
    """Lowers timm's ``Eva``.

    Raises:
        NotRecognised: it is something else, or any part of it was changed.
    """
    model = part.expect(Eva, children=_MODEL, tensors=(*_PREFIX, "pos_embed"))
    common.passes_in_evaluation(part["pos_drop"], part["patch_drop"], part["head_drop"])
    tokens = (getattr(model, name) for name in _PREFIX)
    lower_blocks = common.blocks if model.rope is None else common.all_blocks
    return TransformerSpec(
        EmbeddingSpec(
            timm_models.patches(part["patch_embed"], model.dynamic_img_size),
            tuple(token for token in tokens if token is not None),
            model.pos_embed,
            common.optional_norm(part["norm_pre"]),
            "bicubic_antialias" if model.dynamic_img_size else "no",
        ),
        lower_blocks(part["blocks"], _block),
        common.optional_norm(part["norm"]),
        (timm_models.readout(part, pools_prefix=model.global_pool == "map"),),
        rotary=() if model.rope is None else _rotary(part["rope"], model),
    )


def lower_block(part: Part) -> BlockSpec:
    """Raises NotRecognised: in a model of its own, a block is called with rotary embeddings."""
    raise NotRecognised(part.name, f"is a {type(part.module).__name__}")


def _block(part: Part) -> BlockSpec:
    module = part.expect(EvaBlock, EvaBlockPostNorm, children=_BLOCK, tensors=("gamma_1", "gamma_2"))
    common.passes_in_evaluation(part["drop_path1"], part["drop_path2"])
    return BlockSpec(
        part.name,
        common.norm(part["norm1"]),
        _attention(part["attn"]),
        common.norm(part["norm2"]),
        timm_models.mlp(part["mlp"]),
        getattr(module, "gamma_1", None),
        getattr(module, "gamma_2", None),
        is_post_norm=isinstance(module, EvaBlockPostNorm),
    )


def _attention(part: Part) -> AttentionSpec:
    module = part.expect(EvaAttention, timm.layers.AttentionRope, children=_ATTENTION, tensors=timm_models.QKV_BIASES)
    common.passes_in_evaluation(part["attn_drop"], part["proj_drop"])
    if part["gate"].module is not None:
        raise NotRecognised(part["gate"].name, "multiplies the attention's result")
    if module.qkv is None:
        qkv = common.linear(*(part[name] for name in _SEPARATE))
    else:
        qkv = timm_models.qkv_with_separate_biases(part)
    if getattr(module, "num_kv_heads", module.num_heads) != module.num_heads:
        raise NotRecognised(part.name, "has fewer heads of keys and values than of queries")
    return AttentionSpec(
        qkv,
        module.num_heads,
        qkv.out_features // 3 // module.num_heads,
        float(module.scale),
        common.linear(part["proj"]),
        common.optional_norm(part["q_norm"]),
        common.optional_norm(part["k_norm"]),
        common.optional_norm(part["norm"]),
    )


def _rotary(part: Part, model: Eva) -> tuple[RotarySpec, ...]:
    """Lowers the rotary embedding; checks the result against the module's own."""
    rope = part.module
    is_interleaved = not getattr(model.blocks[0].attn, "rotate_half", False) if len(model.blocks) else False
    if isinstance(rope, RotaryEmbeddingMixed):
        part.expect(RotaryEmbeddingMixed, tensors=("freqs", "t_x", "t_y"))
        order = [0, 1] if rope.grid_indexing == "ij" else [1, 0]  # y, x
        frequencies = rope.freqs.detach()[order].permute(1, 2, 0, 3)  # [blocks, H, 2, D / 2]
        specs = tuple(RotarySpec(one, "indices", is_interleaved) for one in frequencies)
    elif isinstance(rope, RotaryEmbeddingDinoV3):
        part.expect(RotaryEmbeddingDinoV3, tensors=("periods", "pos_embed_cached"))
        frequencies = axial_frequencies(2 * math.pi / rope.get_buffer("periods").float())
        specs = (RotarySpec(frequencies, "centers", is_interleaved, rope.grid_offset),)
    else:
        part.expect(RotaryEmbeddingCat, tensors=("bands", "pos_embed"))
        bands = float(rope.temperature) ** -(torch.arange(rope.dim // 4) / (rope.dim // 4))
        frequencies = axial_frequencies(bands, x_first=rope.grid_indexing == "xy")
        specs = (RotarySpec(frequencies, "indices", is_interleaved, rope.grid_offset, rope.ref_feat_shape),)
    grid = tuple(model.patch_embed.grid_size)
    _check_rotation(part, specs[0], rope.get_embed(list(grid)), grid)
    return specs


def _check_rotation(part: Part, spec: RotarySpec, embedding: torch.Tensor, grid: tuple[int, int]) -> None:
    """Compares a rotation with timm's, which has more options than are read here."""
    embedding = embedding[0] if embedding.dim() == 4 else embedding  # of the first block
    at = patch_coordinates(grid, spec.coordinates, offset=spec.offset, reference=spec.reference)
    tables = rotary_tables(spec.frequencies.cpu(), at, is_interleaved=spec.is_interleaved)
    heads, size = tables.tables.shape[0], tables.tables.shape[-1]
    x = torch.linspace(-1, 1, len(at) * heads * size).view(1, heads, len(at), size)
    theirs = timm.layers.apply_rot_embed_cat(x, embedding.detach().float().cpu(), half=not spec.is_interleaved)
    if not torch.allclose(tables.rotate(x.transpose(1, 2)).transpose(1, 2), theirs, atol=1e-4):
        raise NotRecognised(part.name, f"is a {type(part.module).__name__} with other options than those supported")
