"""Lowering of Hugging Face's DINOv3; imported only if transformers is imported already."""

from __future__ import annotations

import math
import sys
from typing import Any

from torch import nn

from vitfast.inference.ir import (
    AttentionSpec,
    BlockSpec,
    EmbeddingSpec,
    FallbackSpec,
    MlpSpec,
    ReadoutSpec,
    RotarySpec,
    TransformerSpec,
)
from vitfast.inference.lowering import common_layers as common
from vitfast.inference.lowering.huggingface_models import base_output, check_attention
from vitfast.inference.lowering.module_checks import NotRecognised, Part
from vitfast.layers.rotary import axial_frequencies

_MODULE = "transformers.models.dinov3_vit.modeling_dinov3_vit"
_PREFIX = ("cls_token", "register_tokens")
_NAMES = ("q_proj", "k_proj", "v_proj")


def lower_model(part: Part) -> TransformerSpec:
    """Lowers ``DINOv3ViTModel``.

    Raises:
        NotRecognised: it is something else, or any part of it was changed.
    """
    part.expect(_class("Model"), children=("embeddings", "rope_embeddings", "model", "layer", "norm"))
    check_attention(part)
    layers = part["layer"]  # of transformers 4
    if layers.module is None:
        part["model"].expect(_class("Encoder"), children=("layer",))
        layers = part["model"]["layer"]
    blocks = common.blocks(layers, _block)
    for block in blocks:
        if isinstance(block, FallbackSpec):
            raise NotRecognised(block.name, f"{block.why}; blocks with rotary embeddings are accelerated all or none")
    rope = part["rope_embeddings"].expect(_class("RopePositionEmbedding"), tensors=("inv_freq",))
    frequencies = axial_frequencies(2 * math.pi * rope.inv_freq)
    return TransformerSpec(
        _embedding(part["embeddings"], part.module.config),
        blocks,
        common.norm(part["norm"]),
        (ReadoutSpec("all"), ReadoutSpec("token")),
        rotary=(RotarySpec(frequencies, "centers", is_interleaved=False),),
        output=base_output(2, resizes_always=True),
    )


def lower_block(part: Part) -> BlockSpec:
    """Raises NotRecognised: in a model of its own, a layer is called with rotary embeddings."""
    raise NotRecognised(part.name, f"is a {type(part.module).__name__}")


def _class(suffix: str) -> type[nn.Module]:
    found: type[nn.Module] = getattr(sys.modules[_MODULE], f"DINOv3ViT{suffix}")
    return found


def _embedding(part: Part, config: Any) -> EmbeddingSpec:
    tensors = (*_PREFIX, "mask_token")
    module = part.expect(_class("Embeddings"), children=("patch_embeddings",), tensors=tensors)
    patches = common.patches_of_convolution(part["patch_embeddings"], common.pair(config.image_size))
    return EmbeddingSpec(patches, tuple(getattr(module, name) for name in _PREFIX), None, resize="bicubic")


def _block(part: Part) -> BlockSpec:
    children = ("norm1", "attention", "layer_scale1", "drop_path", "norm2", "mlp", "layer_scale2")
    part.expect(_class("Layer"), children=children)
    common.passes_in_evaluation(part["drop_path"])
    attention = part["attention"]
    module = attention.expect(_class("Attention"), children=(*_NAMES, "o_proj"))
    return BlockSpec(
        part.name,
        common.norm(part["norm1"]),
        AttentionSpec(
            common.linear(*(attention[name] for name in _NAMES)),
            module.num_heads,
            module.head_dim,
            float(module.scaling),
            common.linear(attention["o_proj"]),
        ),
        common.norm(part["norm2"]),
        _mlp(part["mlp"]),
        common.layer_scale(part["layer_scale1"], _class("LayerScale"), "lambda1"),
        common.layer_scale(part["layer_scale2"], _class("LayerScale"), "lambda1"),
    )


def _mlp(part: Part) -> MlpSpec:
    part.expect(_class("MLP"), _class("GatedMLP"), children=("gate_proj", "up_proj", "down_proj", "act_fn"))
    activation, down = common.activation(part["act_fn"]), common.linear(part["down_proj"])
    if part["gate_proj"].module is None:
        return MlpSpec(common.linear(part["up_proj"]), activation, down)
    return MlpSpec(common.linear(part["gate_proj"], part["up_proj"]), activation, down, gate="first")
