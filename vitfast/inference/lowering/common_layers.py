"""Lowering of layers that several libraries have: linear layers, LayerNorms, activations, patches, blocks."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

from torch import nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from vitfast.inference.ir import Activation, BlockSpec, FallbackSpec, LinearSpec, MlpSpec, NormSpec, PatchesSpec
from vitfast.inference.lowering.module_checks import NotRecognised, expect, precision_of
from vitfast.layers import DropPath, LayerNorm
from vitfast.ops.arguments import GELU_APPROXIMATE

Blocks = tuple[BlockSpec | FallbackSpec, ...]
_LINEAR = (nn.Linear, NonDynamicallyQuantizableLinear)
_WEIGHT_AND_BIAS = ("weight", "bias")

# (module, class) -> activation, for libraries that may not be installed
_FOREIGN_ACTIVATIONS: dict[tuple[str, str], Activation] = {
    ("timm.layers.activations", "GELU"): "gelu",
    ("timm.layers.activations", "GELUTanh"): "gelu_tanh",
    ("timm.layers.activations", "QuickGELU"): "gelu_quick",
    ("timm.layers.activations", "Tanh"): "tanh",
    ("transformers.activations", "GELUActivation"): "gelu",
    ("transformers.activations", "GELUTanh"): "gelu_tanh",
    ("transformers.activations", "NewGELUActivation"): "gelu_tanh",
    ("transformers.activations", "QuickGELUActivation"): "gelu_quick",
    ("transformers.activations", "SiLUActivation"): "silu",
}


def linear(name: str, *modules: nn.Module) -> LinearSpec:
    """Lowers linear layers with the same input.

    Raises:
        NotRecognised: one is not a plain linear layer, or they are quantized differently.
    """
    checked = [expect(module, name, *_LINEAR, tensors=_WEIGHT_AND_BIAS) for module in modules]
    precisions = {precision_of(module, name) for module in checked}
    if len(precisions) > 1:
        raise NotRecognised(name, "its parts are quantized differently")
    return LinearSpec(
        tuple(module.weight for module in checked), tuple(module.bias for module in checked), precisions.pop()
    )


def norm(name: str, module: nn.Module) -> NormSpec:
    """Lowers a LayerNorm over the last dimension.

    Raises:
        NotRecognised: it is something else.
    """
    checked = expect(module, name, *_norm_classes(), tensors=_WEIGHT_AND_BIAS)
    if len(checked.normalized_shape) != 1:
        raise NotRecognised(name, f"normalizes over {len(checked.normalized_shape)} dimensions")
    return NormSpec(checked.weight, checked.bias, float(checked.eps), precision_of(module, name))


def optional_norm(name: str, module: nn.Module) -> NormSpec | None:
    """Lowers a LayerNorm, or returns None for an identity."""
    return None if type(module) is nn.Identity else norm(name, module)


def passes_in_evaluation(name: str, module: nn.Module) -> None:
    """Checks that a module is an identity in evaluation mode, such as dropout or stochastic depth.

    Raises:
        NotRecognised: it is something else.
    """
    classes: list[type[nn.Module]] = [nn.Identity, nn.Dropout, DropPath]
    for source, class_name in (
        ("timm.layers.drop", "DropPath"),
        ("timm.layers.patch_dropout", "PatchDropout"),
        ("transformers.models.dinov2.modeling_dinov2", "Dinov2DropPath"),
        ("transformers.models.dinov2_with_registers.modeling_dinov2_with_registers", "Dinov2WithRegistersDropPath"),
    ):
        found = getattr(sys.modules.get(source), class_name, None)
        if found is not None:
            classes.append(found)
    expect(module, name, *classes)


def activation(name: str, module: nn.Module) -> Activation:
    """Lowers an activation.

    Raises:
        NotRecognised: it is not one of ``ir.Activation``.
    """
    if type(module) is nn.GELU:
        expect(module, name, nn.GELU)
        return gelu(module.approximate)
    plain: dict[type[nn.Module], Activation] = {nn.Tanh: "tanh", nn.SiLU: "silu", nn.ReLU: "relu"}
    found = plain.get(type(module)) or _FOREIGN_ACTIVATIONS.get((type(module).__module__, type(module).__name__))
    if found is None:
        raise NotRecognised(name, f"is an activation {type(module).__name__} that has no fast kernel")
    expect(module, name, type(module))
    inner = getattr(module, "act", None)  # transformers' classes may replace it by a Python function
    if inner is not None and inner is not F.gelu and not _is_tanh_gelu(inner) and "python" not in repr(inner):
        raise NotRecognised(name, "its function act was replaced")
    return found


def gelu(approximate: str) -> Activation:
    """Lowers a GELU with torch's argument ``approximate``."""
    return next(name for name in ("gelu", "gelu_tanh") if GELU_APPROXIMATE[name] == approximate)


def mlp(name: str, fc1: nn.Module, act: nn.Module, fc2: nn.Module) -> MlpSpec:
    """Lowers the two linear layers of an MLP and the activation between them."""
    return MlpSpec(linear(f"{name}.fc1", fc1), activation(f"{name}.act", act), linear(f"{name}.fc2", fc2))


def patches_of_convolution(name: str, module: nn.Module, image_size: tuple[int, int]) -> PatchesSpec:
    """Lowers a convolution that splits an image into patches.

    Raises:
        NotRecognised: it is not a convolution with adjacent patches.
    """
    conv = expect(module, name, nn.Conv2d, tensors=_WEIGHT_AND_BIAS)
    plain = conv.padding in ((0, 0), 0, "valid") and conv.dilation == (1, 1) and conv.groups == 1
    if conv.stride != conv.kernel_size or not plain:
        raise NotRecognised(name, "is a convolution whose patches overlap, or that pads, dilates or groups")
    rows, columns = (size % patch for size, patch in zip(image_size, conv.kernel_size, strict=True))
    precision = precision_of(module, name)
    if precision == "int8":
        raise NotRecognised(name, "is a convolution quantized to int8 with one scale an image")
    return PatchesSpec(
        LinearSpec((conv.weight,), (conv.bias,), precision),
        image_size,
        conv.kernel_size,
        conv.in_channels,
        padding=(0, -columns, 0, -rows),
    )


def pair(value: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    """``16`` -> ``(16, 16)``."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def head_layers(name: str, module: nn.Module) -> tuple[tuple[LinearSpec, Activation], ...]:
    """Lowers a linear head, or an identity."""
    return () if type(module) is nn.Identity else ((linear(name, module), "none"),)


def blocks(name: str, modules: nn.Module, lower_block: Callable[[str, nn.Module], BlockSpec]) -> Blocks:
    """Lowers a sequence of blocks; one that is not recognised becomes a ``FallbackSpec``."""
    return tuple(_block_or_fallback(f"{name}.{key}", child, lower_block) for key, child in modules.named_children())


def child_names(module: nn.Module) -> list[str]:
    """Names of a module's children."""
    return list(module._modules)


def _block_or_fallback(
    name: str, module: nn.Module, lower_block: Callable[[str, nn.Module], BlockSpec]
) -> BlockSpec | FallbackSpec:
    try:
        return lower_block(name, module)
    except NotRecognised as reason:
        why = reason.why if reason.name == name else f"{reason.name.removeprefix(name + '.')} {reason.why}"
        return FallbackSpec(name, module, why)


def _norm_classes() -> tuple[type[nn.Module], ...]:
    classes: list[type[nn.Module]] = [nn.LayerNorm, LayerNorm]
    timm_norm = getattr(sys.modules.get("timm.layers.norm"), "LayerNorm", None)
    return (*classes, timm_norm) if timm_norm is not None else tuple(classes)


def _is_tanh_gelu(function: object) -> bool:
    return (
        isinstance(function, functools.partial)
        and function.func is F.gelu
        and function.keywords == {"approximate": "tanh"}
    )
