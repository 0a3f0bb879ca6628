"""Lowering of layers that several libraries have: linear layers, LayerNorms, activations, patches, blocks."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from vitfast.inference.ir import (
    Activation,
    AttentionSpec,
    BlockSpec,
    FallbackSpec,
    LinearSpec,
    MlpSpec,
    NormSpec,
    PatchesSpec,
)
from vitfast.inference.lowering.module_checks import NotRecognised, Part, precision_of
from vitfast.layers import DropPath, LayerNorm
from vitfast.ops.arguments import GELU_APPROXIMATE

_WEIGHT_AND_BIAS = ("weight", "bias")
_ACTIVATIONS: dict[type[nn.Module], Activation] = {nn.Tanh: "tanh", nn.SiLU: "silu", nn.ReLU: "relu"}

# (module, class), for libraries that may not be installed
_FOREIGN_ACTIVATIONS: dict[tuple[str, str], Activation] = {
    ("timm.layers.activations", "GELU"): "gelu",
    ("timm.layers.activations", "GELUTanh"): "gelu_tanh",
    ("timm.layers.activations", "QuickGELU"): "gelu_quick",
    ("timm.layers.activations", "Tanh"): "tanh",
    ("open_clip.transformer", "QuickGELU"): "gelu_quick",
    ("transformers.activations", "GELUActivation"): "gelu",
    ("transformers.activations", "GELUTanh"): "gelu_tanh",
    ("transformers.activations", "NewGELUActivation"): "gelu_tanh",
    ("transformers.activations", "QuickGELUActivation"): "gelu_quick",
    ("transformers.activations", "SiLUActivation"): "silu",
}
_FOREIGN_NORMS = (
    ("timm.layers.norm", "LayerNorm"),
    ("open_clip.transformer", "LayerNorm"),
    ("open_clip.transformer", "LayerNormFp32"),
)
_FOREIGN_RMS_NORMS = (
    ("timm.layers.norm", "RmsNorm"),
    ("transformers.models.internvl.modeling_internvl", "InternVLVisionRMSNorm"),
)
_FOREIGN_DROPOUTS = (
    ("timm.layers.drop", "DropPath"),
    ("timm.layers.patch_dropout", "PatchDropout"),
    ("open_clip.transformer", "PatchDropout"),
)


def linear(*parts: Part) -> LinearSpec:
    """Lowers linear layers with the same input.

    Raises:
        NotRecognised: one is not a plain linear layer, or they are quantized differently.
    """
    modules = [part.expect(nn.Linear, NonDynamicallyQuantizableLinear, tensors=_WEIGHT_AND_BIAS) for part in parts]
    precisions = {precision_of(part) for part in parts}
    if len(precisions) > 1:
        raise NotRecognised(parts[0].name, "its parts are quantized differently")
    weights, biases = tuple(module.weight for module in modules), tuple(module.bias for module in modules)
    return LinearSpec(weights, biases, precisions.pop())


def norm(part: Part) -> NormSpec:
    """Lowers a LayerNorm or RMSNorm over the last dimension.

    Raises:
        NotRecognised: it is something else.
    """
    rms_norms: list[type[nn.Module]] = [nn.RMSNorm, *_imported(*_FOREIGN_RMS_NORMS)]
    if type(part.module) in rms_norms:
        rms_norm: Any = part.expect(*rms_norms, tensors=("weight",))
        eps = rms_norm.variance_epsilon if hasattr(rms_norm, "variance_epsilon") else rms_norm.eps
        eps = torch.finfo(torch.float32).eps if eps is None else float(eps)  # torch's default is that of the input
        return NormSpec(rms_norm.weight, None, eps, precision_of(part), is_rms=True)
    module = part.expect(nn.LayerNorm, LayerNorm, *_imported(*_FOREIGN_NORMS), tensors=_WEIGHT_AND_BIAS)
    if len(module.normalized_shape) != 1:
        raise NotRecognised(part.name, f"normalizes over {len(module.normalized_shape)} dimensions")
    return NormSpec(module.weight, module.bias, float(module.eps), precision_of(part))


def optional_norm(part: Part) -> NormSpec | None:
    """Lowers a LayerNorm, or returns None for an identity."""
    return None if part.is_identity else norm(part)


def layer_scale(part: Part, cls: type[nn.Module], name: str) -> Tensor | None:
    """Returns the tensor ``name`` of a LayerScale, or None for an identity."""
    return None if part.is_identity else getattr(part.expect(cls, tensors=(name,)), name)


def passes_in_evaluation(*parts: Part) -> None:
    """Checks that modules are missing, or identities in evaluation mode, such as dropout or stochastic depth.

    Raises:
        NotRecognised: one is something else.
    """
    for part in parts:
        cls = type(part.module)
        is_drop_path = cls.__module__.startswith("transformers.models.") and cls.__name__.endswith("DropPath")
        if not part.is_identity and not is_drop_path:
            part.expect(nn.Dropout, DropPath, *_imported(*_FOREIGN_DROPOUTS))
        elif is_drop_path:
            part.expect(cls)


def activation(part: Part) -> Activation:
    """Lowers an activation.

    Raises:
        NotRecognised: it is not one of ``ir.Activation``.
    """
    cls = type(part.module)
    if cls is nn.GELU:
        return gelu(part.expect(nn.GELU).approximate)
    found = _ACTIVATIONS.get(cls) or _FOREIGN_ACTIVATIONS.get((cls.__module__, cls.__name__))
    if found is None:
        raise NotRecognised(part.name, f"is an activation {cls.__name__} that has no fast kernel")
    part.expect(cls)
    inner = getattr(part.module, "act", None)  # transformers' classes may replace it by a Python function
    if inner is not None and inner is not F.gelu and not _is_tanh_gelu(inner) and "python" not in repr(inner):
        raise NotRecognised(part.name, "its function act was replaced")
    return found


def gelu(approximate: str) -> Activation:
    """Lowers a GELU with torch's argument ``approximate``."""
    return next(name for name in ("gelu", "gelu_tanh") if GELU_APPROXIMATE[name] == approximate)


def multihead_attention(part: Part, kind: str = "attention") -> nn.MultiheadAttention:
    """Checks torch's ``MultiheadAttention`` and returns it; rows of ``in_proj_weight`` are q, k, v.

    Raises:
        NotRecognised: it is something else, or has separate weights, additional keys or another layout.
    """
    tensors = ("in_proj_weight", "in_proj_bias")
    module: nn.MultiheadAttention = part.expect(nn.MultiheadAttention, children=("out_proj",), tensors=tensors)
    if module.in_proj_weight is None or module.bias_k is not None or module.add_zero_attn or not module.batch_first:
        raise NotRecognised(part.name, f"is no plain {kind}")
    return module


def self_attention(part: Part) -> AttentionSpec:
    """Lowers torch's ``MultiheadAttention`` as self-attention."""
    module = multihead_attention(part, "self-attention")
    qkv = LinearSpec((module.in_proj_weight,), (module.in_proj_bias,), precision_of(part))
    return AttentionSpec(qkv, module.num_heads, module.head_dim, module.head_dim**-0.5, linear(part["out_proj"]))


def mlp(fc1: Part, act: Part, fc2: Part) -> MlpSpec:
    """Lowers the two linear layers of an MLP and the activation between them."""
    return MlpSpec(linear(fc1), activation(act), linear(fc2))


@torch.no_grad()
def position_mlp(coordinates: Tensor, fc1: Part, act: Part, fc2: Part) -> Tensor:
    """Computes the table ``[T, H]`` of relative position biases from coordinates ``[..., 2]`` (Swin V2)."""
    act.expect(nn.ReLU)
    first, second = (one.expect(nn.Linear, tensors=_WEIGHT_AND_BIAS) for one in (fc1, fc2))
    hidden = F.relu(F.linear(coordinates, first.weight, first.bias))
    return F.linear(hidden, second.weight, second.bias).flatten(0, -2)


def patches_of_convolution(part: Part, image_size: tuple[int, int]) -> PatchesSpec:
    """Lowers a convolution that splits an image into patches.

    Raises:
        NotRecognised: it is not a convolution with adjacent patches.
    """
    conv = part.expect(nn.Conv2d, tensors=_WEIGHT_AND_BIAS)
    plain = conv.padding in ((0, 0), 0, "valid") and conv.dilation == (1, 1) and conv.groups == 1
    if conv.stride != conv.kernel_size or not plain:
        raise NotRecognised(part.name, "is a convolution whose patches overlap, or that pads, dilates or groups")
    rows, columns = (size % patch for size, patch in zip(image_size, conv.kernel_size, strict=True))
    precision = precision_of(part)
    if precision == "int8":
        raise NotRecognised(part.name, "is a convolution quantized to int8 with one scale an image")
    weight = LinearSpec((conv.weight,), (conv.bias,), precision)
    return PatchesSpec(weight, image_size, conv.kernel_size, conv.in_channels, padding=(0, -columns, 0, -rows))


def pair(value: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    """``16`` -> ``(16, 16)``."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def old_mlp(layer: Part, intermediate: type[nn.Module], output: type[nn.Module]) -> MlpSpec:
    """Lowers the MLP of a layer of transformers 4, whose parts ``intermediate`` and ``output`` belong to the layer."""
    first, second = layer["intermediate"], layer["output"]
    first.expect(intermediate, children=("dense", "intermediate_act_fn"))
    second.expect(output, children=("dense", "dropout"))
    passes_in_evaluation(second["dropout"])
    return mlp(first["dense"], first["intermediate_act_fn"], second["dense"])


def head_layers(*parts: Part) -> tuple[tuple[LinearSpec, Activation], ...]:
    """Lowers a head: linear layers, after which activations may stand, also in ``nn.Sequential``."""
    layers: list[tuple[LinearSpec, Activation]] = []
    for part in parts:
        if type(part.module) is nn.Sequential:
            part.expect(nn.Sequential, children=part.module._modules)
            layers += head_layers(*part.children())
        elif isinstance(part.module, nn.Linear):
            layers.append((linear(part), "none"))
        elif type(part.module) is nn.Dropout or part.is_identity:
            passes_in_evaluation(part)
        elif layers and layers[-1][1] == "none":
            layers[-1] = (layers[-1][0], activation(part))
        else:
            raise NotRecognised(part.name, f"is a {type(part.module).__name__} where a linear layer is expected")
    return tuple(layers)


def blocks(part: Part, lower_block: Callable[[Part], BlockSpec]) -> tuple[BlockSpec | FallbackSpec, ...]:
    """Lowers a list of blocks; one that is not recognised becomes a ``FallbackSpec``."""
    module = part.expect(nn.Sequential, nn.ModuleList, children=getattr(part.module, "_modules", ()))
    return tuple(_block_or_fallback(part[name], lower_block) for name in module._modules)


def all_blocks(part: Part, lower_block: Callable[[Part], BlockSpec]) -> tuple[BlockSpec, ...]:
    """Lowers a list of blocks that are called with more than tokens, such as rotary embeddings.

    Raises:
        NotRecognised: one of them is not recognised.
    """
    found = []
    for block in blocks(part, lower_block):
        if isinstance(block, FallbackSpec):
            raise NotRecognised(block.name, f"{block.why}; blocks of this class are accelerated all or none")
        found.append(block)
    return tuple(found)


def _block_or_fallback(part: Part, lower_block: Callable[[Part], BlockSpec]) -> BlockSpec | FallbackSpec:
    try:
        return lower_block(part)
    except NotRecognised as reason:
        inside = reason.name.removeprefix(part.name).removeprefix(".")
        return FallbackSpec(part.name, part.module, f"{inside} {reason.why}".lstrip())


def _imported(*classes: tuple[str, str]) -> list[type[nn.Module]]:
    """Those of some classes (module, class) whose module has been imported."""
    found = (getattr(sys.modules.get(module), name, None) for module, name in classes)
    return [cls for cls in found if cls is not None]


def _is_tanh_gelu(function: object) -> bool:
    return (
        isinstance(function, functools.partial)
        and function.func is F.gelu
        and function.keywords == {"approximate": "tanh"}
    )
