"""Lowering of Hugging Face's BEiT and Data2Vec-Vision; imported only if transformers is imported already."""

from __future__ import annotations

import sys
from dataclasses import replace

from torch import nn

from vitfast.inference.ir import (
    AttentionSpec,
    BlockSpec,
    EmbeddingSpec,
    MlpSpec,
    OutputSpec,
    ReadoutSpec,
    RelativeBiasSpec,
    TransformerSpec,
)
from vitfast.inference.lowering import common_layers as common
from vitfast.inference.lowering.huggingface_models import OUTPUTS, check_attention
from vitfast.inference.lowering.module_checks import NotRecognised, Part

_FAMILIES = ("Data2VecVision", "Beit")  # prefixes of the classes' names
_NAMES = {"Data2VecVision": "data2vec_vision", "Beit": "beit"}  # of the model in a classifier
_QKV = ("q_proj", "k_proj", "v_proj")
_OLD_QKV = ("query", "key", "value")


def lower_model(part: Part) -> TransformerSpec:
    """Lowers a model without head, an image classifier or a backbone.

    Raises:
        NotRecognised: it is something else, or any part of it was changed.
    """
    name = type(part.module).__name__
    family = next((one for one in _FAMILIES if name.startswith(one)), "")
    suffix = name.removeprefix(family)
    if suffix == "Model":
        spec, pooled = _base(part)
        return replace(spec, readouts=(ReadoutSpec("all"), *pooled))
    base = _NAMES.get(family, "")
    if suffix == "ForImageClassification":
        part.expect(_class(part, suffix), children=(base, "classifier"))
        spec, (pooled_readout,) = _base(part[base])
        readout = replace(pooled_readout, layers=common.head_layers(part["classifier"]))
        output = OutputSpec(OUTPUTS, "ImageClassifierOutput", ("logits",), resizes_always=True)
        return replace(spec, readouts=(readout,), output=output)
    if suffix == "Backbone":
        return _backbone(part, base)
    raise NotRecognised(part.name, f"is a {name}, whose head has no fast kernel")


def lower_block(part: Part) -> BlockSpec:
    """Raises NotRecognised: in a model of its own, a layer is called with a position bias."""
    raise NotRecognised(part.name, f"is a {type(part.module).__name__}")


def _base(part: Part) -> tuple[TransformerSpec, tuple[ReadoutSpec, ...]]:
    """Lowers a model without head; returns it without readouts, and the readout of its pooler, if it has one."""
    children = ("embeddings", "shared_position_bias", "layers", "encoder", "layernorm", "pooler")
    part.expect(_class(part, "Model"), children=children)
    check_attention(part)
    pooled: tuple[ReadoutSpec, ...] = ()
    if part["pooler"].module is not None:
        part["pooler"].expect(_class(part, "Pooler"), children=("layernorm",))
        norm = common.optional_norm(part["pooler"]["layernorm"])
        pooled = (ReadoutSpec("token") if norm is None else ReadoutSpec("mean", 1, norm),)
    fields = ("last_hidden_state", "pooler_output")[: 1 + len(pooled)]
    module = type(part.module).__module__
    output = OutputSpec(module, f"{_class_name(part, 'Model')}OutputWithPooling", fields, resizes_always=True)
    return replace(_tower(part), norm=common.optional_norm(part["layernorm"]), output=output), pooled


def _backbone(part: Part, base: str) -> TransformerSpec:
    model = part.expect(_class(part, "Backbone"), children=(base, "fpn", "embeddings", "encoder"))
    common.passes_in_evaluation(part["fpn"])
    if part[base].module is None:  # transformers 4
        check_attention(part)
        spec = _tower(part)
    else:
        spec, _ = _base(part[base])
    pooling = "grid" if model.config.reshape_hidden_states else "all"
    states = (state for state, stage in enumerate(model.stage_names) if stage in model.out_features)
    readouts = tuple(ReadoutSpec(pooling, 1 if pooling == "grid" else 0, state=state) for state in states)  # type: ignore[arg-type]
    fields = ("feature_maps",) * len(readouts)
    output = OutputSpec(OUTPUTS, "BackboneOutput", fields, resizes_always=True, tuples=("feature_maps",))
    return replace(spec, readouts=readouts, output=output)


def _tower(part: Part) -> TransformerSpec:
    """Lowers embeddings and blocks, which are submodules of ``part``."""
    shared, layers = part["shared_position_bias"], part["layers"]
    if part["encoder"].module is not None:  # Data2Vec-Vision, and BEiT in transformers 4
        part["encoder"].expect(_class(part, "Encoder"), children=("relative_position_bias", "layer"))
        shared, layers = part["encoder"]["relative_position_bias"], part["encoder"]["layer"]
    bias = _bias(shared)
    blocks = common.all_blocks(layers, lambda layer: _block(layer, bias))
    return TransformerSpec(_embedding(part["embeddings"]), blocks, None, ())


def _class_name(part: Part, suffix: str) -> str:
    return next(one for one in _FAMILIES if type(part.module).__name__.startswith(one)) + suffix


def _class(part: Part, suffix: str) -> type[nn.Module]:
    """The class of a family with ``suffix``, in the module that defines the class of ``part``."""
    found: type[nn.Module] = getattr(sys.modules[type(part.module).__module__], _class_name(part, suffix))
    return found


def _embedding(part: Part) -> EmbeddingSpec:
    tensors = ("cls_token", "mask_token", "position_embeddings")
    module = part.expect(_class(part, "Embeddings"), children=("patch_embeddings", "dropout"), tensors=tensors)
    common.passes_in_evaluation(part["dropout"])
    patches = part["patch_embeddings"]
    size = patches.expect(_class(patches, "PatchEmbeddings"), children=("projection",)).image_size
    return EmbeddingSpec(
        common.patches_of_convolution(patches["projection"], common.pair(size)),
        (module.cls_token,),
        module.position_embeddings,
        resize="bicubic",
    )


def _bias(part: Part) -> RelativeBiasSpec | None:
    if part.module is None:
        return None
    tensors = ("relative_position_bias_table", "relative_position_index")
    module = part.expect(_class(part, "RelativePositionBias"), tensors=tensors)
    rows, columns = common.pair(module.window_size)
    if rows != columns:
        raise NotRecognised(part.name, "is made for images that are not square")
    return RelativeBiasSpec(module.relative_position_bias_table, (rows, columns), has_class_token=True)


def _block(part: Part, shared: RelativeBiasSpec | None) -> BlockSpec:
    children = (
        *("attention", "layernorm_before", "layernorm_after", "mlp", "intermediate", "output", "dropout", "drop_path"),
        "relative_position_bias",
    )
    module = part.expect(_class(part, "Layer"), children=children, tensors=("lambda_1", "lambda_2"))
    common.passes_in_evaluation(part["dropout"], part["drop_path"])
    attention, own = _attention(part["attention"])
    own = own or _bias(part["relative_position_bias"])
    if own is not None and shared is not None:
        raise NotRecognised(part.name, "has a position bias of its own beside the shared one")
    # a plain 1.0 or None without LayerScale
    scale1, scale2 = (one if isinstance(one, nn.Parameter) else None for one in (module.lambda_1, module.lambda_2))
    return BlockSpec(
        part.name,
        common.norm(part["layernorm_before"]),
        replace(attention, bias=own or shared),
        common.norm(part["layernorm_after"]),
        _mlp(part),
        scale1,
        scale2,
    )


def _attention(part: Part) -> tuple[AttentionSpec, RelativeBiasSpec | None]:
    if part["attention"].module is None:
        module = part.expect(_class(part, "Attention"), children=(*_QKV, "o_proj"))
        qkv, proj = common.linear(*(part[name] for name in _QKV)), common.linear(part["o_proj"])
        scale = float(module.scaling)
        return AttentionSpec(qkv, module.num_attention_heads, module.head_dim, scale, proj), None
    part.expect(_class(part, "Attention"), children=("attention", "output"))  # layout of transformers 4
    inner, output = part["attention"], part["output"]
    classes = (_class(inner, "SelfAttention"), _class(inner, "SdpaSelfAttention"))
    module = inner.expect(*classes, children=(*_OLD_QKV, "dropout", "relative_position_bias"))
    output.expect(_class(output, "SelfOutput"), children=("dense", "dropout"))
    common.passes_in_evaluation(inner["dropout"], output["dropout"])
    qkv, proj = common.linear(*(inner[name] for name in _OLD_QKV)), common.linear(output["dense"])
    head_dim = int(module.attention_head_size)
    spec = AttentionSpec(qkv, module.num_attention_heads, head_dim, head_dim**-0.5, proj)
    return spec, _bias(inner["relative_position_bias"])


def _mlp(layer: Part) -> MlpSpec:
    mlp = layer["mlp"]
    if mlp.module is None:
        return common.old_mlp(layer, _class(layer, "Intermediate"), _class(layer, "Output"))
    mlp.expect(_class(mlp, "MLP"), children=("activation_fn", "fc1", "fc2"))
    return common.mlp(mlp["fc1"], mlp["activation_fn"], mlp["fc2"])
