"""Lowering of Hugging Face's ViT, DeiT and DINOv2; imported only if transformers is imported already.

Their classes differ mainly in names, which are in a table.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vitfast.inference.ir import (
    Activation,
    AttentionSpec,
    BlockSpec,
    EmbeddingSpec,
    LinearSpec,
    PatchesSpec,
    ReadoutSpec,
    Resize,
    TransformerSpec,
)
from vitfast.inference.lowering import common_layers as common
from vitfast.inference.lowering.module_checks import NotRecognised, check_unmodified, expect


@dataclass(frozen=True)
class Family:
    """How one of transformers' models is put together.

    Attributes:
        prefix: of its classes' names.
        module: that holds them.
        base: under which name a classifier holds the model.
        norms: of a layer, before the attention and before the MLP.
        blocks: where the model holds its common.
        prefix_tokens: of the embeddings, in order.
        resize: how positions are adapted to other image sizes.
    """

    prefix: str
    module: str
    base: str
    norms: tuple[str, str]
    blocks: str
    prefix_tokens: tuple[str, ...]
    resize: Resize = "no"

    def class_of(self, suffix: str) -> type[nn.Module]:
        """One of its classes."""
        found: type[nn.Module] = getattr(importlib.import_module(self.module), self.prefix + suffix)
        return found


_MODELS = "transformers.models"
_OLD_NORMS, _NEW_NORMS = ("layernorm_before", "layernorm_after"), ("norm1", "norm2")
FAMILIES = (
    Family("ViT", f"{_MODELS}.vit.modeling_vit", "vit", _OLD_NORMS, "layers", ("cls_token",)),
    Family("DeiT", f"{_MODELS}.deit.modeling_deit", "deit", _OLD_NORMS, "layers", ("cls_token", "distillation_token")),
    Family("Dinov2", f"{_MODELS}.dinov2.modeling_dinov2", "dinov2", _NEW_NORMS, "encoder", ("cls_token",), "bicubic"),
    Family(
        "Dinov2WithRegisters",
        f"{_MODELS}.dinov2_with_registers.modeling_dinov2_with_registers",
        "dinov2_with_registers",
        _NEW_NORMS,
        "encoder",
        ("cls_token", "register_tokens"),
        "bicubic_antialias",
    ),
)


def family_of(model: nn.Module) -> Family | None:
    """The family of one of transformers' models, or of one of their layers; None for all else."""
    loaded = (family for family in FAMILIES if family.module in sys.modules)
    return next((family for family in loaded if type(model).__module__ == family.module), None)


def lower_model(model: nn.Module) -> TransformerSpec:
    """Lowers a model without head, or an image classifier.

    Raises:
        NotRecognised: it is something else, or something outside its layers was changed.
    """
    family = family_of(model)
    if family is None:
        raise NotRecognised("", f"is a {type(model).__name__}, not a ViT, DeiT or DINOv2 of transformers")
    suffix = type(model).__name__.removeprefix(family.prefix)
    if suffix == "Model":
        return _base(model, "", family, None)
    classifiers = {
        "ForImageClassification": ("classifier",),
        "ForImageClassificationWithTeacher": ("cls_classifier", "distillation_classifier"),
    }
    if suffix not in classifiers:
        raise NotRecognised("", f"is a {type(model).__name__}, whose head has no fast kernel")
    heads = classifiers[suffix]
    checked = expect(model, "", family.class_of(suffix), children=(family.base, *heads))
    is_dino = family.resize != "no"
    registers = getattr(checked.config, "num_register_tokens", 0) if is_dino else 0
    readouts = tuple(
        ReadoutSpec(
            "token_and_mean" if is_dino else "token",
            1 + registers if is_dino else index,
            None,
            common.head_layers(name, getattr(checked, name)),
        )
        for index, name in enumerate(heads)
    )
    return _base(getattr(checked, family.base), family.base, family, readouts)


def lower_block(name: str, module: nn.Module) -> BlockSpec:
    """Lowers a layer of any of the families."""
    family = family_of(module)
    if family is None:
        raise NotRecognised(name, f"is a {type(module).__name__}")
    norm1, norm2 = family.norms
    scales = ("layer_scale1", "layer_scale2")
    children = (norm1, norm2, "attention", "mlp", "dropout", "drop_path", *scales)
    checked = expect(module, name, family.class_of("Layer"), children=children)
    common.passes_in_evaluation(f"{name}.dropout", getattr(checked, "dropout", nn.Identity()))
    common.passes_in_evaluation(f"{name}.drop_path", getattr(checked, "drop_path", nn.Identity()))
    mlp = expect(checked.mlp, f"{name}.mlp", family.class_of("MLP"), children=("activation_fn", "fc1", "fc2"))
    return BlockSpec(
        name,
        common.norm(f"{name}.{norm1}", getattr(checked, norm1)),
        _attention(f"{name}.attention", checked.attention, family),
        common.norm(f"{name}.{norm2}", getattr(checked, norm2)),
        common.mlp(f"{name}.mlp", mlp.fc1, mlp.activation_fn, mlp.fc2),
        _layer_scale(f"{name}.{scales[0]}", getattr(checked, scales[0], None), family),
        _layer_scale(f"{name}.{scales[1]}", getattr(checked, scales[1], None), family),
    )


def _base(model: nn.Module, name: str, family: Family, readouts: tuple[ReadoutSpec, ...] | None) -> TransformerSpec:
    """Lowers the model below a head; without a head (``readouts`` None) it returns all tokens and a pooled one."""
    at = f"{name}." if name else ""
    checked = expect(
        model, name, family.class_of("Model"), children=("embeddings", "layers", "encoder", "layernorm", "pooler")
    )
    if checked.config._attn_implementation not in ("eager", "sdpa"):
        raise NotRecognised(name, f"attends by {checked.config._attn_implementation!r}")
    listed = getattr(checked, family.blocks)
    blocks_name = f"{at}{family.blocks}"
    if family.blocks == "encoder":
        check_unmodified(expect(listed, blocks_name, family.class_of("Encoder"), children=("layer",)), blocks_name)
        listed, blocks_name = listed.layer, f"{blocks_name}.layer"
    expect(listed, blocks_name, nn.ModuleList, children=common.child_names(listed))
    return TransformerSpec(
        _embedding(f"{at}embeddings", checked.embeddings, family),
        common.blocks(blocks_name, listed, lower_block),
        common.norm(f"{at}layernorm", checked.layernorm),
        readouts or (ReadoutSpec("all", 0, None, ()), *_pooler(f"{at}pooler", checked, family)),
        "one" if readouts and len(readouts) == 1 else "each",
    )


def _pooler(name: str, model: Any, family: Family) -> tuple[ReadoutSpec, ...]:
    if family.resize != "no":
        return (ReadoutSpec("token", 0, None, ()),)
    if model.pooler is None:
        return ()
    pooler = expect(model.pooler, name, family.class_of("Pooler"), children=("dense", "activation"))
    act: Activation = common.activation(f"{name}.activation", pooler.activation)
    dense: LinearSpec = common.linear(f"{name}.dense", pooler.dense)
    return (ReadoutSpec("token", 0, None, ((dense, act),)),)


def _embedding(name: str, module: nn.Module, family: Family) -> EmbeddingSpec:
    tensors = (*family.prefix_tokens, "mask_token", "position_embeddings")
    checked = expect(
        module, name, family.class_of("Embeddings"), children=("patch_embeddings", "dropout"), tensors=tensors
    )
    common.passes_in_evaluation(f"{name}.dropout", checked.dropout)
    patches_name = f"{name}.patch_embeddings"
    patches: Any = expect(
        checked.patch_embeddings, patches_name, family.class_of("PatchEmbeddings"), children=("projection",)
    )
    described: PatchesSpec = common.patches_of_convolution(
        f"{patches_name}.projection", patches.projection, common.pair(patches.image_size)
    )
    prefix = tuple(getattr(checked, token) for token in family.prefix_tokens)
    return EmbeddingSpec(described, prefix, checked.position_embeddings, resize=family.resize)


def _attention(name: str, module: nn.Module, family: Family) -> AttentionSpec:
    names = ("q_proj", "k_proj", "v_proj")
    checked = expect(module, name, family.class_of("Attention"), children=(*names, "o_proj"))
    qkv = common.linear(f"{name}.q_proj", *(getattr(checked, part) for part in names))
    proj = common.linear(f"{name}.o_proj", checked.o_proj)
    return AttentionSpec(qkv, checked.num_attention_heads, checked.head_dim, float(checked.scaling), proj)


def _layer_scale(name: str, module: nn.Module | None, family: Family) -> Tensor | None:
    if module is None:
        return None
    scale: Tensor = expect(module, name, family.class_of("LayerScale"), tensors=("lambda1",)).lambda1
    return scale
