"""Lowering of Hugging Face's Swin Transformers, V1 and V2; imported only if transformers is imported already."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import torch
from torch import nn

from vitfast.inference.ir import (
    AttentionSpec,
    BlockSpec,
    EmbeddingSpec,
    MergeSpec,
    MlpSpec,
    NormSpec,
    OutputSpec,
    ReadoutSpec,
    RelativeBiasSpec,
    TransformerSpec,
    WindowSpec,
)
from vitfast.inference.lowering import common_layers as common
from vitfast.inference.lowering.huggingface_models import OUTPUTS, check_attention
from vitfast.inference.lowering.module_checks import NotRecognised, Part

_QKV = ("q_proj", "k_proj", "v_proj")
_OLD_QKV = ("query", "key", "value")
_TABLE = ("relative_position_bias_table", "relative_position_index")


def lower_model(part: Part) -> TransformerSpec:
    """Lowers a model without head, an image classifier or a backbone.

    Raises:
        NotRecognised: it is something else, or any part of it was changed.
    """
    name = type(part.module).__name__
    family = _family(part)
    base = family.lower()
    suffix = name.removeprefix(family)
    if suffix == "Model":
        spec, pooled = _base(part)
        return replace(spec, readouts=(ReadoutSpec("all"), *pooled))
    if suffix == "ForImageClassification":
        part.expect(_class(part, suffix), children=(base, "classifier"))
        spec, pooled = _base(part[base])
        readout = replace(pooled[0], layers=common.head_layers(part["classifier"]))
        output = replace(_output(part, "ImageClassifierOutput", ("logits",)), states=_states(spec))
        return replace(spec, readouts=(readout,), output=output)
    if suffix == "Backbone":
        return _backbone(part, base)
    raise NotRecognised(part.name, f"is a {name}, whose head has no fast kernel")


def lower_block(part: Part) -> BlockSpec:
    """Raises NotRecognised: in a model of its own, a layer is called with the size of its grid."""
    raise NotRecognised(part.name, f"is a {type(part.module).__name__}")


def _family(part: Part) -> str:
    return "Swinv2" if type(part.module).__name__.startswith("Swinv2") else "Swin"


def _class(part: Part, suffix: str) -> type[nn.Module]:
    """The class of a family with ``suffix``, in the module that defines the class of ``part``."""
    found: type[nn.Module] = getattr(sys.modules[type(part.module).__module__], _family(part) + suffix)
    return found


def _output(part: Part, name: str, fields: tuple[str, ...]) -> OutputSpec:
    module = type(part.module).__module__
    return OutputSpec(module, _family(part) + name, fields, resizes_always=True, grids=("reshaped_hidden_states",))


def _states(spec: TransformerSpec) -> tuple[int, ...]:
    """The hidden states that a model returns: those before each stage, and the last one."""
    merges = (index + 1 for index, block in enumerate(spec.blocks) if isinstance(block, MergeSpec))
    return (0, *merges, len(spec.blocks))


def _base(part: Part) -> tuple[TransformerSpec, tuple[ReadoutSpec, ...]]:
    """Lowers a model without head; returns it without readouts, and the readout of its pooler, if it has one."""
    part.expect(_class(part, "Model"), children=("embeddings", "encoder", "layernorm", "pooler"))
    check_attention(part)
    pooled: tuple[ReadoutSpec, ...] = ()
    if part["pooler"].module is not None:
        part["pooler"].expect(nn.AdaptiveAvgPool1d)
        pooled = (ReadoutSpec("mean"),)
    output = _output(part, "ModelOutput", ("last_hidden_state", "pooler_output")[: 1 + len(pooled)])
    spec = _tower(part["embeddings"], part["encoder"], common.norm(part["layernorm"]))
    return replace(spec, output=replace(output, states=_states(spec))), pooled


def _backbone(part: Part, base: str) -> TransformerSpec:
    model = part.expect(_class(part, "Backbone"), children=(base, "hidden_states_norms", "embeddings", "encoder"))
    inner = part if part[base].module is None else part[base]
    if inner is part:
        spec = _tower(part["embeddings"], part["encoder"], None)
    else:
        spec, _ = _base(inner)
    # the backbone partitions every grid into shifted windows, also one that is not larger than a window
    blocks = (
        replace(one, attention=_always_shifted(one.attention)) if isinstance(one, BlockSpec) else one
        for one in spec.blocks
    )
    spec = replace(spec, blocks=tuple(blocks))
    states = (0, *spec.stages)
    readouts = []
    for state, stage in zip(states, model.stage_names, strict=True):
        if stage in model.out_features:
            norm = (
                None if part["hidden_states_norms"].module is None else common.norm(part["hidden_states_norms"][stage])
            )
            readouts.append(ReadoutSpec("grid", 0, norm, state=state))
    output = OutputSpec(
        OUTPUTS,
        "BackboneOutput",
        ("feature_maps",) * len(readouts),
        resizes_always=True,
        tuples=("feature_maps",),
        states=states,
        grids=() if inner is part else ("hidden_states",),
    )
    return replace(spec, readouts=tuple(readouts), output=output)


def _always_shifted(attention: AttentionSpec) -> AttentionSpec:
    assert attention.windows is not None
    return replace(attention, windows=replace(attention.windows, shifts_small_grids=True))


def _tower(embeddings: Part, encoder: Part, norm: NormSpec | None) -> TransformerSpec:
    encoder.expect(_class(encoder, "Encoder"), children=("layers",))
    blocks: list[BlockSpec | MergeSpec] = []
    stages: list[int] = []
    for stage in encoder["layers"].children():
        stage.expect(_class(stage, "Stage"), children=("blocks", "downsample"))
        blocks += common.all_blocks(stage["blocks"], _block)
        stages.append(len(blocks))
        if stage["downsample"].module is not None:
            blocks.append(_merging(stage["downsample"]))
    return TransformerSpec(_embedding(embeddings), tuple(blocks), norm, (), stages=tuple(stages))


def _embedding(part: Part) -> EmbeddingSpec:
    tensors = ("mask_token", "position_embeddings")
    children = ("patch_embeddings", "norm", "dropout")
    module = part.expect(_class(part, "Embeddings"), children=children, tensors=tensors)
    common.passes_in_evaluation(part["dropout"])
    if module.position_embeddings is not None:
        raise NotRecognised(part.name, "has absolute positions")
    patches = part["patch_embeddings"]
    patches.expect(_class(patches, "PatchEmbeddings"), children=("projection",))
    size = tuple(side * patch for side, patch in zip(patches.module.grid_size, patches.module.patch_size, strict=True))
    spec = common.patches_of_convolution(patches["projection"], common.pair(size))
    # images of other sides are padded by transformers, and refused here
    return EmbeddingSpec(replace(spec, norm=common.norm(part["norm"])), (), None, resize="bicubic_antialias")


def _merging(part: Part) -> MergeSpec:
    part.expect(_class(part, "PatchMerging"), children=("norm", "reduction"))
    linear, norm = common.linear(part["reduction"]), common.norm(part["norm"])
    return MergeSpec(part.name, None, linear, norm) if _family(part) == "Swinv2" else MergeSpec(part.name, norm, linear)


def _block(part: Part) -> BlockSpec:
    children = (
        "attention",
        "layernorm_before",
        "layernorm_after",
        "mlp",
        "intermediate",
        "output",
        "dropout",
        "drop_path",
    )
    module = part.expect(_class(part, "Layer"), children=children)
    common.passes_in_evaluation(part["dropout"], part["drop_path"])
    is_second = _family(part) == "Swinv2"
    size, shift = int(module.window_size), int(module.shift_size)
    windows = WindowSpec((size, size), (shift, shift), pads_first=True, shifts_small_grids=is_second)
    return BlockSpec(
        part.name,
        common.norm(part["layernorm_before"]),
        _attention(part["attention"], windows),
        common.norm(part["layernorm_after"]),
        _mlp(part),
        is_post_norm=is_second,
    )


def _attention(part: Part, windows: WindowSpec) -> AttentionSpec:
    if part["self"].module is None:
        module = part.expect(_class(part, "Attention"), children=(*_QKV, "o_proj", "relative_position_bias"))
        qkv, proj = common.linear(*(part[name] for name in _QKV)), common.linear(part["o_proj"])
        bias = part["relative_position_bias"]
        table = bias.expect(_class(bias, "RelativePositionBias"), tensors=_TABLE).relative_position_bias_table
        heads, head_dim = int(module.num_attention_heads), int(module.head_dim)
        return _windowed(part, AttentionSpec(qkv, heads, head_dim, head_dim**-0.5, proj), table, windows)
    part.expect(_class(part, "Attention"), children=("self", "output"))  # Swin V2, and V1 in transformers 4
    inner, output = part["self"], part["output"]
    tensors = (*_TABLE, "relative_coords_table", "logit_scale")
    children = (*_OLD_QKV, "dropout", "continuous_position_bias_mlp")
    module = inner.expect(_class(inner, "SelfAttention"), children=children, tensors=tensors)
    output.expect(_class(output, "SelfOutput"), children=("dense", "dropout"))
    common.passes_in_evaluation(inner["dropout"], output["dropout"])
    qkv, proj = common.linear(*(inner[name] for name in _OLD_QKV)), common.linear(output["dense"])
    heads, head_dim = int(module.num_attention_heads), int(module.attention_head_size)
    if _family(part) == "Swin":
        spec = AttentionSpec(qkv, heads, head_dim, head_dim**-0.5, proj)
        return _windowed(part, spec, module.relative_position_bias_table, windows)
    mlp = inner["continuous_position_bias_mlp"]
    mlp.expect(nn.Sequential, children=("0", "1", "2"))
    table = 16 * torch.sigmoid(common.position_mlp(module.relative_coords_table, *mlp.children()))
    cosine = torch.clamp(module.logit_scale.detach(), max=math.log(100)).exp().flatten()
    return _windowed(part, AttentionSpec(qkv, heads, head_dim, 1.0, proj, cosine=cosine), table, windows)


def _windowed(part: Part, spec: AttentionSpec, table: torch.Tensor, windows: WindowSpec) -> AttentionSpec:
    rows, columns = windows.size
    if len(table) != (2 * rows - 1) * (2 * columns - 1):
        raise NotRecognised(part.name, f"has a position bias of another size than its windows, {windows.size}")
    return replace(spec, bias=RelativeBiasSpec(table, windows.size), windows=windows)


def _mlp(layer: Part) -> MlpSpec:
    mlp = layer["mlp"]
    if mlp.module is None:
        return common.old_mlp(layer, _class(layer, "Intermediate"), _class(layer, "Output"))
    mlp.expect(_class(mlp, "MLP"), children=("activation_fn", "fc1", "fc2"))
    return common.mlp(mlp["fc1"], mlp["activation_fn"], mlp["fc2"])
