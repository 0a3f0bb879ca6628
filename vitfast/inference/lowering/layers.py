"""The layers that all sources are built from: linear layers, LayerNorms, activations."""

from __future__ import annotations

import functools
import sys

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from vitfast import layers as own
from vitfast.inference.ir import Activation, LinearSpec, MlpSpec, NormSpec, PatchesSpec
from vitfast.inference.lowering.module_checks import expect
from vitfast.inference.lowering.not_recognised import NotRecognised
from vitfast.inference.lowering.quantized import precision_of

_LINEAR = (nn.Linear, NonDynamicallyQuantizableLinear)
_WEIGHT_AND_BIAS = ("weight", "bias")

# class name by module -> activation, of libraries that may not be imported
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
    """Describes linear layers that read the same input.

    Raises:
        NotRecognised: one is no plain linear layer, or they are quantized differently.
    """
    checked = [expect(module, name, *_LINEAR, tensors=_WEIGHT_AND_BIAS) for module in modules]
    precisions = {precision_of(module, name) for module in checked}
    if len(precisions) > 1:
        raise NotRecognised(name, "its parts are quantized differently")
    return LinearSpec(
        tuple(module.weight for module in checked), tuple(module.bias for module in checked), precisions.pop()
    )


def norm(name: str, module: nn.Module) -> NormSpec:
    """Describes a LayerNorm over the last dimension.

    Raises:
        NotRecognised: it is something else.
    """
    checked = expect(module, name, *_norm_classes(), tensors=_WEIGHT_AND_BIAS)
    if len(checked.normalized_shape) != 1:
        raise NotRecognised(name, f"normalizes over {len(checked.normalized_shape)} dimensions")
    return NormSpec(checked.weight, checked.bias, float(checked.eps), precision_of(module, name))


def optional_norm(name: str, module: nn.Module) -> NormSpec | None:
    """Describes a LayerNorm, or None for an identity.

    Raises:
        NotRecognised: it is something else.
    """
    return None if type(module) is nn.Identity else norm(name, module)


def passes_in_evaluation(name: str, module: nn.Module) -> None:
    """Checks that a module returns its input in evaluation: dropout, stochastic depth, an identity.

    Raises:
        NotRecognised: it is something else.
    """
    classes: list[type[nn.Module]] = [nn.Identity, nn.Dropout, own.DropPath]
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
    """Names an activation.

    Raises:
        NotRecognised: it is not one of ``ir.Activation``.
    """
    if type(module) is nn.GELU:
        expect(module, name, nn.GELU)
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    plain: dict[type[nn.Module], Activation] = {nn.Tanh: "tanh", nn.SiLU: "silu", nn.ReLU: "relu"}
    found = plain.get(type(module)) or _FOREIGN_ACTIVATIONS.get((type(module).__module__, type(module).__name__))
    if found is None:
        raise NotRecognised(name, f"is an activation {type(module).__name__} that has no fast kernel")
    expect(module, name, type(module))
    inner = getattr(module, "act", None)  # transformers' classes may compute in Python instead
    if inner is not None and inner is not F.gelu and not _is_tanh_gelu(inner) and "python" not in repr(inner):
        raise NotRecognised(name, "its function act was replaced")
    return found


def mlp(name: str, fc1: nn.Module, act: nn.Module, fc2: nn.Module) -> MlpSpec:
    """Describes the two linear layers of an MLP and what stands between.

    Raises:
        NotRecognised: a part is something else.
    """
    return MlpSpec(linear(f"{name}.fc1", fc1), activation(f"{name}.act", act), linear(f"{name}.fc2", fc2))


def patches_of_convolution(name: str, module: nn.Module, image_size: tuple[int, int]) -> PatchesSpec:
    """Describes a convolution that cuts an image into patches.

    Raises:
        NotRecognised: its patches overlap or do not cover the image, or it is something else.
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


def same_tensor(left: Tensor | None, right: Tensor | None) -> bool:
    """Whether both are the same object, or both None."""
    return left is right


def check_float32(model: nn.Module) -> None:
    """Checks that a model's parameters are in float32.

    Raises:
        NotRecognised: they are not.
    """
    wrong = sorted({str(p.dtype) for p in model.parameters() if p.is_floating_point() and p.dtype != torch.float32})
    if wrong:
        raise NotRecognised("", f"has parameters in {', '.join(wrong)}")


def _norm_classes() -> tuple[type[nn.Module], ...]:
    classes: list[type[nn.Module]] = [nn.LayerNorm, own.LayerNorm]
    timm_norm = getattr(sys.modules.get("timm.layers.norm"), "LayerNorm", None)
    return (*classes, timm_norm) if timm_norm is not None else tuple(classes)


def _is_tanh_gelu(function: object) -> bool:
    return (
        isinstance(function, functools.partial)
        and function.func is F.gelu
        and function.keywords == {"approximate": "tanh"}
    )
