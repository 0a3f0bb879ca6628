"""Lowering of Hugging Face's InternVL vision model; imported only if transformers is imported already."""

from __future__ import annotations

import sys

from torch import nn

from vitfast.inference.ir import AttentionSpec, BlockSpec, EmbeddingSpec, OutputSpec, ReadoutSpec, TransformerSpec
from vitfast.inference.lowering import common_layers as common
from vitfast.inference.lowering.huggingface_models import check_attention
from vitfast.inference.lowering.module_checks import NotRecognised, Part

_MODULE = "transformers.models.internvl.modeling_internvl"
_QKV = ("q_proj", "k_proj", "v_proj")


def lower_model(part: Part) -> TransformerSpec:
    """Lowers ``InternVLVisionModel``.

    Raises:
        NotRecognised: it is something else, or any part of it was changed.
    """
    if type(part.module) is not _class("Model"):
        raise NotRecognised(part.name, f"is a {type(part.module).__name__}")
    part.expect(_class("Model"), children=("embeddings", "encoder", "layernorm"))
    check_attention(part)
    part["encoder"].expect(_class("Encoder"), children=("layer",))
    return TransformerSpec(
        _embedding(part["embeddings"]),
        common.blocks(part["encoder"]["layer"], lower_block),
        common.optional_norm(part["layernorm"]),
        (ReadoutSpec("all"),),
        output=OutputSpec(_MODULE, "InternVLVisionModelOutputWithPooling", ("last_hidden_state",), resizes_always=True),
    )


def lower_block(part: Part) -> BlockSpec:
    """Lowers ``InternVLVisionLayer``."""
    children = ("attention", "mlp", "layernorm_before", "layernorm_after", "dropout")
    layer = part.expect(_class("Layer"), children=children, tensors=("lambda_1", "lambda_2"))
    part["mlp"].expect(_class("MLP"), children=("activation_fn", "fc1", "fc2"))
    common.passes_in_evaluation(part["dropout"])
    return BlockSpec(
        part.name,
        common.norm(part["layernorm_before"]),
        _attention(part["attention"]),
        common.norm(part["layernorm_after"]),
        common.mlp(part["mlp"]["fc1"], part["mlp"]["activation_fn"], part["mlp"]["fc2"]),
        layer.lambda_1,
        layer.lambda_2,
    )


def _embedding(part: Part) -> EmbeddingSpec:
    tensors = ("cls_token", "mask_token", "position_embeddings")
    module = part.expect(_class("Embeddings"), children=("patch_embeddings", "dropout"), tensors=tensors)
    common.passes_in_evaluation(part["dropout"])
    part["patch_embeddings"].expect(_class("PatchEmbeddings"), children=("projection",))
    patches = common.patches_of_convolution(part["patch_embeddings"]["projection"], common.pair(module.image_size))
    return EmbeddingSpec(patches, (module.cls_token,), module.position_embeddings, resize="bicubic")


def _attention(part: Part) -> AttentionSpec:
    children = (*_QKV, "projection_layer", "projection_dropout", "q_norm", "k_norm")
    module = part.expect(_class("Attention"), children=children)
    common.passes_in_evaluation(part["projection_dropout"])
    return AttentionSpec(
        common.linear(*(part[name] for name in _QKV)),
        module.num_heads,
        module.head_dim,
        float(module.scale),
        common.linear(part["projection_layer"]),
        common.optional_norm(part["q_norm"]),
        common.optional_norm(part["k_norm"]),
        has_joint_norms=True,
    )


def _class(suffix: str) -> type[nn.Module]:
    found: type[nn.Module] = getattr(sys.modules[_MODULE], f"InternVLVision{suffix}")
    return found
