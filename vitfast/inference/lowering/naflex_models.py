"""Lowering of timm's ``NaFlexVit``; imported only if timm is imported already."""

from __future__ import annotations

from timm.models.naflexvit import NaFlexEmbeds, NaFlexVit
from torch import nn

from vitfast.inference.ir import BlockSpec, LinearSpec, SequenceSpec
from vitfast.inference.lowering import common_layers as common
from vitfast.inference.lowering import timm_models
from vitfast.inference.lowering.module_checks import NotRecognised, Part

_MODEL = "embeds norm_pre rope patch_drop blocks norm attn_pool fc_norm head_drop head".split()
_EMBEDS = ("norm_input", "proj", "patch_interpolator", "norm", "pos_drop")
_PREFIX = ("cls_token", "reg_token")
_POSITIONS = ("pos_embed", "pos_embed_y", "pos_embed_x")


def lower_model(part: Part) -> SequenceSpec:
    """Lowers a ``NaFlexVit`` without rotary embeddings.

    Raises:
        NotRecognised: it is something else, or any part of it was changed.
    """
    model = part.expect(NaFlexVit, children=_MODEL)
    common.passes_in_evaluation(part["rope"], part["patch_drop"], part["head_drop"])
    embeds = part["embeds"].expect(NaFlexEmbeds, children=_EMBEDS, tensors=(*_PREFIX, *_POSITIONS))
    common.passes_in_evaluation(part["embeds"]["norm_input"], part["embeds"]["pos_drop"])
    if embeds.pos_embed_use_grid_sample or embeds.pos_embed_align_corners or not embeds.pos_embed_antialias:
        raise NotRecognised(part["embeds"].name, "resizes its positions by other options than those supported")
    if embeds.dynamic_img_pad:
        raise NotRecognised(part["embeds"].name, "pads images")
    tokens = (getattr(embeds, name) for name in _PREFIX)
    return SequenceSpec(
        _projection(part["embeds"]["proj"]),
        common.all_blocks(part["blocks"], timm_models.lower_block),
        common.optional_norm(part["norm"]),
        (timm_models.readout(part, pools_prefix=model.pool_include_prefix),),
        prefix=tuple(token for token in tokens if token is not None),
        positions=tuple(getattr(embeds, name)[0] for name in _POSITIONS if getattr(embeds, name) is not None),
        resize=embeds.pos_embed_interp_mode,
        keeps_aspect=embeds.pos_embed_ar_preserving,
        patch_norm=common.optional_norm(part["embeds"]["norm"]),
        pre_norm=common.optional_norm(part["norm_pre"]),
        patch_size=tuple(embeds.patch_size),
        is_channels_last=embeds.is_linear and embeds.channels_last,
    )


def lower_block(part: Part) -> BlockSpec:
    """Lowers a block: those of timm's ``VisionTransformer``."""
    return timm_models.lower_block(part)


def _projection(part: Part) -> LinearSpec:
    if isinstance(part.module, nn.Conv2d):
        return common.patches_of_convolution(part, common.pair(list(part.module.kernel_size))).linear
    return common.linear(part)
