"""Lowering of Hugging Face's ViT, DeiT, ViT-MSN, I-JEPA and DINOv2; imported only if transformers is imported already.

Their classes differ mainly in names, which are in a table.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass, replace

from torch import Tensor, nn

from vitfast.inference.ir import (
    AttentionSpec,
    BlockSpec,
    EmbeddingSpec,
    MlpSpec,
    OutputSpec,
    Pooling,
    ReadoutSpec,
    Resize,
    TransformerSpec,
)
from vitfast.inference.lowering import common_layers as common
from vitfast.inference.lowering.module_checks import NotRecognised, Part


@dataclass(frozen=True)
class Family:
    """Names in one of transformers' models."""

    prefix: str  # of its classes' names
    name: str  # of its module
    prefix_tokens: tuple[str, ...]  # in the embeddings, in order
    resize: Resize = "bicubic"  # of positions, for other image sizes
    base: str = ""  # name of the model in a classifier, if it is not ``name``
    output: str = "BaseModelOutputWithPooling"
    pooling: Pooling = "token"  # of the classifier

    @property
    def is_dino(self) -> bool:
        """Whether it is a DINOv2, whose classifier reads the class token and the mean of the patches."""
        return self.prefix.startswith("Dino")

    @property
    def module(self) -> str:
        """The module that holds its classes."""
        return f"transformers.models.{self.name}.modeling_{self.name}"

    def class_of(self, suffix: str) -> type[nn.Module]:
        """One of its classes."""
        found: type[nn.Module] = getattr(importlib.import_module(self.module), self.prefix + suffix)
        return found


FAMILIES = (
    Family("ViT", "vit", ("cls_token",)),
    Family("DeiT", "deit", ("cls_token", "distillation_token")),
    Family("ViTMSN", "vit_msn", ("cls_token",), base="vit", output="BaseModelOutput"),
    Family("IJepa", "ijepa", (), pooling="mean"),
    Family("ViTMAE", "vit_mae", ("cls_token",)),
    Family("Dinov2", "dinov2", ("cls_token",)),
    Family("Dinov2WithRegisters", "dinov2_with_registers", ("cls_token", "register_tokens"), "bicubic_antialias"),
)
# suffix of a classifier's class -> its heads
_HEADS = {
    "ForImageClassification": ("classifier",),
    "ForImageClassificationWithTeacher": ("cls_classifier", "distillation_classifier"),
}
OUTPUTS = "transformers.modeling_outputs"
_OLD_MLP = ("intermediate", "output")  # in a layer of transformers 4


def family_of(model: nn.Module) -> Family | None:
    """The family of one of transformers' models, or of one of their layers; None for all else."""
    loaded = (family for family in FAMILIES if family.module in sys.modules)
    return next((family for family in loaded if type(model).__module__ == family.module), None)


def lower_model(part: Part) -> TransformerSpec:
    """Lowers a model without head, or an image classifier.

    Raises:
        NotRecognised: it is something else, or something outside its layers was changed.
    """
    name = type(part.module).__name__
    family = family_of(part.module)
    if family is None:
        raise NotRecognised("", f"is a {name}, not a ViT, DeiT, ViT-MSN, I-JEPA or DINOv2 of transformers")
    suffix = name.removeprefix(family.prefix)
    if family.prefix == "ViTMAE":
        raise NotRecognised(part.name, "shuffles its patches at random, so that only its layers are accelerated")
    if suffix == "Model":
        return _base(part, family)
    if suffix == "Backbone":
        return _backbone(part, family)
    if suffix not in _HEADS:
        raise NotRecognised("", f"is a {name}, whose head has no fast kernel")
    heads = _HEADS[suffix]
    base = family.base or family.name
    model = part.expect(family.class_of(suffix), children=(base, *heads))
    layers = [common.head_layers(part[head]) for head in heads]
    if family.is_dino:
        index = 1 + getattr(model.config, "num_register_tokens", 0)
        readouts = [ReadoutSpec("token_and_mean", index, layers=layers[0])]
    else:
        readouts = [ReadoutSpec(family.pooling, index, layers=head) for index, head in enumerate(layers)]
    output = OutputSpec(OUTPUTS, "ImageClassifierOutput", ("logits",), family.is_dino)
    if len(heads) > 1:
        output = OutputSpec(family.module, f"{name}Output", ("cls_logits", "distillation_logits"))
    return replace(_base(part[base], family), readouts=tuple(readouts), output=output)


def lower_block(part: Part) -> BlockSpec:
    """Lowers a layer of any of the families."""
    family = family_of(part.module)
    if family is None:
        raise NotRecognised(part.name, f"is a {type(part.module).__name__}")
    norm1, norm2 = ("norm1", "norm2") if family.is_dino else ("layernorm_before", "layernorm_after")
    children = (norm1, norm2, "attention", "mlp", "dropout", "drop_path", "layer_scale1", "layer_scale2", *_OLD_MLP)
    part.expect(family.class_of("Layer"), children=children)
    common.passes_in_evaluation(part["dropout"], part["drop_path"])
    return BlockSpec(
        part.name,
        common.norm(part[norm1]),
        _attention(part["attention"], family),
        common.norm(part[norm2]),
        _mlp(part, family),
        _layer_scale(part["layer_scale1"], family),
        _layer_scale(part["layer_scale2"], family),
    )


def _base(part: Part, family: Family) -> TransformerSpec:
    """Lowers a model without head, which returns all tokens and a pooled one."""
    part.expect(family.class_of("Model"), children=("embeddings", "layers", "encoder", "layernorm", "pooler"))
    readouts = (ReadoutSpec("all"), *_pooler(part["pooler"], family))
    output = replace(base_output(len(readouts), family.is_dino), name=family.output)
    return _tower(part, family, readouts, output)


def _backbone(part: Part, family: Family) -> TransformerSpec:
    """Lowers a backbone, which returns feature maps of some hidden states."""
    model = part.expect(family.class_of("Backbone"), children=("embeddings", "encoder", "layernorm"))
    norm = common.norm(part["layernorm"]) if model.config.apply_layernorm else None
    reshapes = model.config.reshape_hidden_states
    index = 1 + getattr(model.config, "num_register_tokens", 0)
    states = (state for state, stage in enumerate(model.stage_names) if stage in model.out_features)
    readouts = tuple(ReadoutSpec("grid" if reshapes else "all", index, norm, state=state) for state in states)
    fields = ("feature_maps",) * len(readouts)
    output = OutputSpec(OUTPUTS, "BackboneOutput", fields, resizes_always=True, tuples=("feature_maps",))
    return _tower(part, family, readouts, output)


def _tower(part: Part, family: Family, readouts: tuple[ReadoutSpec, ...], output: OutputSpec) -> TransformerSpec:
    check_attention(part)
    blocks = part["layers"]
    if part["encoder"].module is not None:  # DINOv2, and all families in transformers 4
        part["encoder"].expect(family.class_of("Encoder"), children=("layer",))
        blocks = part["encoder"]["layer"]
    return TransformerSpec(
        _embedding(part["embeddings"], family),
        common.blocks(blocks, lower_block),
        common.norm(part["layernorm"]),
        readouts,
        output=output,
    )


def check_attention(part: Part) -> None:
    """Checks that a model computes softmax attention, without a replacement that was registered by name.

    Raises:
        NotRecognised: it uses another implementation.
    """
    implementation = part.module.config._attn_implementation
    if implementation not in ("eager", "sdpa"):
        raise NotRecognised(part.name, f"attends by {implementation!r}")


def base_output(num_readouts: int, resizes_always: bool = False) -> OutputSpec:
    """The output of a model without head: all tokens and, with two readouts, a pooled one."""
    fields = ("last_hidden_state", "pooler_output")
    return OutputSpec(OUTPUTS, "BaseModelOutputWithPooling", fields[:num_readouts], resizes_always)


def _pooler(part: Part, family: Family) -> tuple[ReadoutSpec, ...]:
    if family.is_dino:
        return (ReadoutSpec("token"),)
    if part.module is None:
        return ()
    part.expect(family.class_of("Pooler"), children=("dense", "activation"))
    return (ReadoutSpec("token", layers=common.head_layers(part["dense"], part["activation"])),)


def _embedding(part: Part, family: Family) -> EmbeddingSpec:
    tensors = (*family.prefix_tokens, "mask_token", "position_embeddings")
    module = part.expect(family.class_of("Embeddings"), children=("patch_embeddings", "dropout"), tensors=tensors)
    common.passes_in_evaluation(part["dropout"])
    patches = part["patch_embeddings"]
    size = patches.expect(family.class_of("PatchEmbeddings"), children=("projection",)).image_size
    return EmbeddingSpec(
        common.patches_of_convolution(patches["projection"], common.pair(size)),
        tuple(getattr(module, token) for token in family.prefix_tokens),
        module.position_embeddings,
        resize=family.resize,
    )


def _mlp(layer: Part, family: Family) -> MlpSpec:
    if layer["intermediate"].module is not None:
        return common.old_mlp(layer, family.class_of("Intermediate"), family.class_of("Output"))
    part = layer["mlp"]
    if type(part.module).__name__ == f"{family.prefix}SwiGLUFFN":
        return gated_mlp(part, family.class_of("SwiGLUFFN"))
    part.expect(family.class_of("MLP"), children=("activation_fn", "activation", "fc1", "fc2"))
    activation = part["activation_fn"] if part["activation"].module is None else part["activation"]
    return common.mlp(part["fc1"], activation, part["fc2"])


def gated_mlp(part: Part, *classes: type[nn.Module]) -> MlpSpec:
    """Lowers transformers' MLP with ``gate_proj``, ``up_proj`` and ``down_proj``, or DINOv2's of transformers 4."""
    part.expect(*classes, children=("gate_proj", "up_proj", "down_proj", "act_fn", "weights_in", "weights_out"))
    if part["weights_in"].module is not None:
        return MlpSpec(common.linear(part["weights_in"]), "silu", common.linear(part["weights_out"]), gate="first")
    fc1, fc2 = common.linear(part["gate_proj"], part["up_proj"]), common.linear(part["down_proj"])
    return MlpSpec(fc1, common.activation(part["act_fn"]), fc2, gate="first")


def _layer_scale(part: Part, family: Family) -> Tensor | None:
    return common.layer_scale(part, family.class_of("LayerScale"), "lambda1") if family.is_dino else None


def _attention(part: Part, family: Family) -> AttentionSpec:
    if part["attention"].module is not None:
        return _old_attention(part, family)
    names = ("q_proj", "k_proj", "v_proj")
    module = part.expect(family.class_of("Attention"), children=(*names, "o_proj"))
    qkv = common.linear(*(part[name] for name in names))
    proj = common.linear(part["o_proj"])
    return AttentionSpec(qkv, module.num_attention_heads, module.head_dim, float(module.scaling), proj)


def _old_attention(part: Part, family: Family) -> AttentionSpec:
    """Lowers the attention of transformers 4."""
    part.expect(family.class_of("Attention"), children=("attention", "output"))
    names, inner, output = ("query", "key", "value"), part["attention"], part["output"]
    module = inner.expect(family.class_of("SelfAttention"), children=names)
    output.expect(family.class_of("SelfOutput"), children=("dense", "dropout"))
    common.passes_in_evaluation(output["dropout"])
    qkv, proj = common.linear(*(inner[name] for name in names)), common.linear(output["dense"])
    return AttentionSpec(qkv, module.num_attention_heads, module.attention_head_size, float(module.scaling), proj)
