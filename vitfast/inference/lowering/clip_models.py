"""Lowering of the image towers of Hugging Face's CLIP and SigLIP; imported only if transformers is imported already."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from vitfast.inference.ir import (
    AttentionSpec,
    BlockSpec,
    EmbeddingSpec,
    LinearSpec,
    MapPoolSpec,
    MlpSpec,
    OutputSpec,
    ReadoutSpec,
    SequenceSpec,
    TransformerSpec,
)
from vitfast.inference.lowering import common_layers as common
from vitfast.inference.lowering.huggingface_models import OUTPUTS, base_output, check_attention
from vitfast.inference.lowering.module_checks import NotRecognised, Part

# class prefix -> module
_MODULES = {
    "CLIP": "transformers.models.clip.modeling_clip",
    "Siglip": "transformers.models.siglip.modeling_siglip",
    "Siglip2": "transformers.models.siglip2.modeling_siglip2",
}


def lower_model(part: Part) -> TransformerSpec | SequenceSpec:
    """Lowers an image tower, alone or with a projection or a classifier.

    Raises:
        NotRecognised: it is something else, or something outside its layers was changed.
    """
    family, suffix = _family(part)
    lower_tower: Callable[[Part, str], Any] = _sequence_tower if family == "Siglip2" else _tower
    if suffix == "VisionModelWithProjection":
        part.expect(_class(family, suffix), children=("vision_model", "visual_projection"))
        tower = lower_tower(part["vision_model"], family)
        tokens, pooled = tower.readouts
        projected = replace(pooled, layers=common.head_layers(part["visual_projection"]), is_projected=True)
        output = OutputSpec(_MODULES[family], "CLIPVisionModelOutput", ("image_embeds", "last_hidden_state"))
        return replace(tower, readouts=(projected, tokens), output=output)
    if suffix == "ForImageClassification":
        part.expect(_class(family, suffix), children=("vision_model", "classifier"))
        tower = lower_tower(part["vision_model"], family)
        index = 1 if family == "CLIP" else 0
        readout = ReadoutSpec("mean", index, layers=common.head_layers(part["classifier"]))
        output = OutputSpec(OUTPUTS, "ImageClassifierOutput", ("logits",), resizes_always=family == "Siglip2")
        return replace(tower, readouts=(readout,), output=output)
    if suffix == "VisionModel" and isinstance(getattr(part.module, "vision_model", None), nn.Module):
        part.expect(_class(family, suffix), children=("vision_model",))  # transformers 4
        return lower_tower(part["vision_model"], family)
    if suffix in ("VisionModel", "VisionTransformer"):
        return lower_tower(part, family)
    towers = ("vision_model",) if suffix == "Model" else ()
    raise NotRecognised(part.name, f"is a {family}{suffix}, of which only the image tower is accelerated", towers)


def lower_block(part: Part) -> BlockSpec:
    """Raises NotRecognised: outside an image tower, the blocks take masks."""
    raise NotRecognised(part.name, f"is a {type(part.module).__name__}")


def _family(part: Part) -> tuple[str, str]:
    """Returns the prefix of the model's class and the rest of its name."""
    cls = type(part.module)
    for family, module in _MODULES.items():
        if cls.__module__ == module:
            return family, cls.__name__.removeprefix(family)
    raise NotRecognised(part.name, f"is a {cls.__module__}.{cls.__qualname__}")


def _class(family: str, suffix: str) -> type[nn.Module]:
    found: type[nn.Module] = getattr(sys.modules[_MODULES[family]], family + suffix)
    return found


def _readouts(part: Part, family: str) -> tuple[ReadoutSpec, ...]:
    """Checks a tower without head, which returns all tokens and, except some SigLIPs, a pooled one."""
    suffix = type(part.module).__name__.removeprefix(family)
    if suffix not in ("VisionModel", "VisionTransformer"):
        raise NotRecognised(part.name, f"is a {type(part.module).__name__}")
    children = ("embeddings", "pre_layrnorm", "encoder", "post_layernorm", "head")
    part.expect(_class(family, suffix), children=children)
    check_attention(part)
    part["encoder"].expect(_class(family, "Encoder"), children=("layers",))
    readouts = [ReadoutSpec("all")]
    if family == "CLIP":
        readouts.append(ReadoutSpec("token", norm=common.norm(part["post_layernorm"])))
    elif part["head"].module is not None:
        readouts.append(ReadoutSpec("map", map_pool=_map_pool(part["head"], family)))
    return tuple(readouts)


def _sequence_tower(part: Part, family: str) -> SequenceSpec:
    readouts = _readouts(part, family)
    embeddings = part["embeddings"]
    children = ("patch_embedding", "position_embedding")
    module = embeddings.expect(_class(family, "VisionEmbeddings"), children=children)
    positions = embeddings["position_embedding"].expect(nn.Embedding, tensors=("weight",)).weight
    side = module.position_embedding_size
    return SequenceSpec(
        common.linear(embeddings["patch_embedding"]),
        common.all_blocks(part["encoder"]["layers"], lambda block: _block(block, family)),
        common.norm(part["post_layernorm"]),
        readouts,
        positions=(positions.detach().view(side, side, -1),),
        output=base_output(len(readouts), resizes_always=True),
    )


def _tower(part: Part, family: str) -> TransformerSpec:
    readouts = _readouts(part, family)
    return TransformerSpec(
        _embedding(part["embeddings"], family, part["pre_layrnorm"]),
        common.blocks(part["encoder"]["layers"], lambda block: _block(block, family)),
        None if family == "CLIP" else common.norm(part["post_layernorm"]),
        readouts,
        output=base_output(len(readouts)),
    )


def _embedding(part: Part, family: str, pre_norm: Part) -> EmbeddingSpec:
    children, tensors = ("patch_embedding", "position_embedding"), ("class_embedding", "position_ids")
    module = part.expect(_class(family, "VisionEmbeddings"), children=children, tensors=tensors)
    positions = part["position_embedding"].expect(nn.Embedding, tensors=("weight",)).weight
    prefix = (module.class_embedding[None, None],) if family == "CLIP" else ()
    return EmbeddingSpec(
        common.patches_of_convolution(part["patch_embedding"], common.pair(module.image_size)),
        prefix,
        positions[None],
        common.optional_norm(pre_norm),
        "bicubic",
    )


def _block(part: Part, family: str) -> BlockSpec:
    part.expect(_class(family, "EncoderLayer"), children=("self_attn", "layer_norm1", "mlp", "layer_norm2"))
    attention = part["self_attn"]
    names = ("q_proj", "k_proj", "v_proj")
    module = attention.expect(_class(family, "Attention"), children=(*names, "out_proj"))
    qkv = common.linear(*(attention[name] for name in names))
    proj = common.linear(attention["out_proj"])
    return BlockSpec(
        part.name,
        common.norm(part["layer_norm1"]),
        AttentionSpec(qkv, module.num_heads, module.head_dim, float(module.scale), proj),
        common.norm(part["layer_norm2"]),
        _mlp(part["mlp"], family),
    )


def _mlp(part: Part, family: str) -> MlpSpec:
    part.expect(_class(family, "MLP"), children=("activation_fn", "fc1", "fc2"))
    return common.mlp(part["fc1"], part["activation_fn"], part["fc2"])


def _map_pool(part: Part, family: str) -> MapPoolSpec:
    children = ("attention", "layernorm", "mlp")
    head = part.expect(_class(family, "MultiheadAttentionPoolingHead"), children=children, tensors=("probe",))
    attention = part["attention"]
    module = common.multihead_attention(attention)
    channels = module.embed_dim
    return MapPoolSpec(
        head.probe,
        LinearSpec((module.in_proj_weight[:channels],), (module.in_proj_bias[:channels],)),
        LinearSpec((module.in_proj_weight[channels:],), (module.in_proj_bias[channels:],)),
        module.num_heads,
        module.head_dim**-0.5,
        common.linear(attention["out_proj"]),
        common.norm(part["layernorm"]),
        _mlp(part["mlp"], family),
    )
