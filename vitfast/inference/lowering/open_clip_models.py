"""Lowering of open_clip's image towers; imported only if open_clip is imported already."""

from __future__ import annotations

from open_clip.timm_model import TimmModel
from open_clip.transformer import LayerScale, ResidualAttentionBlock, Transformer, VisionTransformer
from torch import nn

from vitfast.inference.ir import (
    Activation,
    BlockSpec,
    EmbeddingSpec,
    LinearSpec,
    Pooling,
    ReadoutSpec,
    TransformerSpec,
)
from vitfast.inference.lowering import common_layers as common
from vitfast.inference.lowering.module_checks import NotRecognised, Part

_MODEL = ("conv1", "patch_dropout", "ln_pre", "transformer", "attn_pool", "attn_pool_contrastive", "ln_post")
_POOLING: dict[str, Pooling] = {"tok": "token", "avg": "mean", "none": "all"}
_TENSORS = ("class_embedding", "positional_embedding", "proj")


def lower_model(part: Part) -> TransformerSpec:
    """Lowers open_clip's ``VisionTransformer``, without CoCa's attentional pooling.

    Raises:
        NotRecognised: it is something else, or something outside its blocks was changed. Of ``CLIP`` and
            ``CustomTextCLIP`` the image tower may be recognised, of ``TimmModel`` the model of timm in it.
    """
    if isinstance(part.module, TimmModel):
        raise NotRecognised(part.name, "is a TimmModel, of which only the trunk is accelerated", ("trunk",))
    if isinstance(getattr(part.module, "visual", None), nn.Module):
        name = type(part.module).__name__
        towers = ("visual", "visual.trunk")
        raise NotRecognised(part.name, f"is open_clip's {name}, of which only the image tower is accelerated", towers)
    model = part.expect(VisionTransformer, children=_MODEL, tensors=_TENSORS)
    if model.attn_pool is not None:
        raise NotRecognised(part["attn_pool"].name, "is an attentional pooling")
    common.passes_in_evaluation(part["patch_dropout"])
    part["transformer"].expect(Transformer, children=("resblocks",))
    norm = common.norm(part["ln_post"])
    projection: tuple[tuple[LinearSpec, Activation], ...] = ()
    if model.proj is not None:
        projection = ((LinearSpec((model.proj.t(),), (None,)), "none"),)
    pooling = _POOLING[model.pool_type]
    pooled_norm = norm if model.final_ln_after_pool else None
    readouts = [ReadoutSpec(pooling, 1 if pooling == "mean" else 0, pooled_norm, projection, is_projected=True)]
    if model.output_tokens:
        readouts.append(ReadoutSpec("all" if pooling == "all" else "patches", 1))
    return TransformerSpec(
        EmbeddingSpec(
            common.patches_of_convolution(part["conv1"], common.pair(model.image_size)),
            (model.class_embedding[None, None],),
            model.positional_embedding[None],
            common.optional_norm(part["ln_pre"]),
        ),
        common.blocks(part["transformer"]["resblocks"], _block),
        None if model.final_ln_after_pool else norm,
        tuple(readouts),
    )


def lower_block(part: Part) -> BlockSpec:
    """Raises NotRecognised: outside an image tower, the blocks take masks."""
    raise NotRecognised(part.name, f"is a {type(part.module).__name__}")


def _block(part: Part) -> BlockSpec:
    part.expect(ResidualAttentionBlock, children=("ln_1", "attn", "ls_1", "ln_2", "mlp", "ls_2"))
    mlp = part["mlp"]
    mlp.expect(nn.Sequential, children=("c_fc", "gelu", "c_proj"))
    return BlockSpec(
        part.name,
        common.norm(part["ln_1"]),
        common.self_attention(part["attn"]),
        common.norm(part["ln_2"]),
        common.mlp(mlp["c_fc"], mlp["gelu"], mlp["c_proj"]),
        common.layer_scale(part["ls_1"], LayerScale, "gamma"),
        common.layer_scale(part["ls_2"], LayerScale, "gamma"),
    )
