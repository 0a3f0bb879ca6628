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
    MlpSpec,
    NormSpec,
    OutputSpec,
    Pooling,
    ReadoutSpec,
    RotarySpec,
    TransformerSpec,
)
from vitfast.inference.lowering import common_layers as common
from vitfast.inference.lowering.huggingface_models import OUTPUTS, base_output, check_attention, gated_mlp
from vitfast.inference.lowering.module_checks import NotRecognised, Part
from vitfast.layers.rotary import axial_frequencies

_MODULE = "transformers.models.dinov3_vit.modeling_dinov3_vit"
_PREFIX = ("cls_token", "register_tokens")
_NAMES = ("q_proj", "k_proj", "v_proj")


def lower_model(part: Part) -> TransformerSpec:
    """Lowers ``DINOv3ViTModel`` and ``DINOv3ViTBackbone``.

    Raises:
        NotRecognised: it is something else, or any part of it was changed.
    """
    children = ("embeddings", "rope_embeddings", "model", "layer", "norm")
    suffix = type(part.module).__name__.removeprefix("DINOv3ViT")
    if suffix not in ("Model", "Backbone"):
        raise NotRecognised(part.name, f"is a {type(part.module).__name__}")
    model = part.expect(_class(suffix), children=children)
    check_attention(part)
    layers = part["layer"]  # of transformers 4
    if layers.module is None:
        part["model"].expect(_class("Encoder"), children=("layer",))
        layers = part["model"]["layer"]
    blocks = common.all_blocks(layers, _block)
    rope = part["rope_embeddings"].expect(_class("RopePositionEmbedding"), tensors=("inv_freq",))
    frequencies = axial_frequencies(2 * math.pi * rope.inv_freq)
    norm = common.norm(part["norm"])
    readouts: tuple[ReadoutSpec, ...] = (ReadoutSpec("all"), ReadoutSpec("token"))
    output = base_output(2, resizes_always=True)
    if suffix == "Backbone":
        readouts, output = _feature_maps(model, norm)
    return TransformerSpec(
        _embedding(part["embeddings"], model.config),
        blocks,
        norm,
        readouts,
        rotary=(RotarySpec(frequencies, "centers", is_interleaved=False),),
        output=output,
    )


def lower_block(part: Part) -> BlockSpec:
    """Raises NotRecognised: in a model of its own, a layer is called with rotary embeddings."""
    raise NotRecognised(part.name, f"is a {type(part.module).__name__}")


def _class(suffix: str) -> type[nn.Module]:
    found: type[nn.Module] = getattr(sys.modules[_MODULE], f"DINOv3ViT{suffix}")
    return found


def _feature_maps(model: Any, norm: NormSpec) -> tuple[tuple[ReadoutSpec, ...], OutputSpec]:
    """Returns the readouts of a backbone: patches and, if requested, class token of some hidden states."""
    config, last = model.config, len(model.stage_names) - 1
    pooling: Pooling = "grid" if config.reshape_hidden_states else "patches"
    fields: list[str] = []
    readouts: list[ReadoutSpec] = []
    for state, stage in enumerate(model.stage_names):
        if stage not in model.out_features:
            continue
        own_norm = norm if config.apply_layernorm or state == last else None
        if getattr(config, "return_class_token", False):
            fields.append("cls_tokens")
            readouts.append(ReadoutSpec("token", 0, own_norm, state=state))
        fields.append("feature_maps")
        readouts.append(ReadoutSpec(pooling, 1 + config.num_register_tokens, own_norm, state=state))
    own = "DINOv3ViTBackboneOutput"  # not in transformers 4
    module, name = (_MODULE, own) if hasattr(sys.modules[_MODULE], own) else (OUTPUTS, "BackboneOutput")
    tuples = tuple(field for field in ("feature_maps", "cls_tokens") if field in fields)
    return tuple(readouts), OutputSpec(module, name, tuple(fields), resizes_always=True, tuples=tuples)


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
    if isinstance(part.module, _class("GatedMLP")):
        return gated_mlp(part, _class("GatedMLP"))
    part.expect(_class("MLP"), children=("up_proj", "down_proj", "act_fn"))
    return common.mlp(part["up_proj"], part["act_fn"], part["down_proj"])
