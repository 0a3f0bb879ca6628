"""Which quantized counterpart a module has."""

from __future__ import annotations

import importlib
import sys
from functools import cache

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils.parametrize import is_parametrized

from vitfast import layers
from vitfast.models.foreign_model import ForeignModel
from vitfast.quantization import torch_layers, vitfast_layers
from vitfast.quantization.quantized_module import QuantizedModule

# Keyed by the exact type: a subclass may compute something else, so it does not inherit the counterpart of its base.
_COUNTERPARTS: dict[type[nn.Module], type[QuantizedModule]] = {
    nn.Linear: torch_layers.QuantizedLinear,
    nn.Conv2d: torch_layers.QuantizedConv2d,
    nn.LayerNorm: torch_layers.QuantizedLayerNorm,
    nn.MultiheadAttention: torch_layers.QuantizedMultiheadAttention,
    nn.TransformerEncoderLayer: torch_layers.QuantizedTransformerEncoderLayer,
    NonDynamicallyQuantizableLinear: torch_layers.QuantizedOutProjection,
    layers.LayerNorm: vitfast_layers.QuantizedVitfastLayerNorm,
    layers.StdConv2d: vitfast_layers.QuantizedStdConv2d,
    layers.StoredFeatures: vitfast_layers.QuantizedStoredFeatures,
    layers.JoinTokens: vitfast_layers.QuantizedJoinTokens,
    layers.AddPositions: vitfast_layers.QuantizedAddPositions,
    layers.ResidualAdd: vitfast_layers.QuantizedResidualAdd,
}

# layers that a configuration applies to: one of these without a counterpart is an error
_QUANTIZABLE = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.MultiheadAttention)


def find_counterpart(module: nn.Module) -> type[QuantizedModule] | None:
    """Returns the quantized subclass of a module's class, None if there is none."""
    counterparts = dict(_COUNTERPARTS)
    for library in ("timm", "torchvision"):
        if f"{library}.models.vision_transformer" in sys.modules:
            counterparts |= importlib.import_module(f"vitfast.quantization.{library}_layers").COUNTERPARTS
    # torch derives the class of a parametrized module from the class of the layer
    if is_parametrized(module) and type(module).__mro__[1] is nn.Linear:
        return _parametrized_counterpart(type(module))  # type: ignore[arg-type]
    return counterparts.get(type(module))


def lacks_counterpart(module: nn.Module) -> bool:
    """Returns whether a module is a linear layer, convolution, LayerNorm or attention of an unsupported class."""
    return isinstance(module, _QUANTIZABLE) and find_counterpart(module) is None


def is_left_out(module: nn.Module) -> bool:
    """Returns whether a module is another library's linear map or RMSNorm that no configuration quantizes."""
    if isinstance(module, _QUANTIZABLE) or type(module).__module__.startswith("vitfast."):
        return False
    name = type(module).__name__
    return isinstance(module, (_ConvNd, nn.Bilinear)) or "RMSNorm" in name or "RmsNorm" in name or name == "Conv1D"


def never_quantized(model: nn.Module) -> set[str]:
    """Returns the names of the layers that stay float32 in every configuration.

    They are part of a softmax, or their module reads their weight and never calls them.
    """
    names = set()
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, layers.GatedPositionalAttention):
            names.add(f"{prefix}pos_proj")
        if isinstance(module, nn.MultiheadAttention) and find_counterpart(module) is None:
            names.add(f"{prefix}out_proj")
    return names


def call_layers(module: nn.Module) -> None:
    """Makes a foreign module that contains quantized layers call them, where it would otherwise read their weights.

    timm's BEiT, EVA and Swin V2 pass the weight of ``qkv`` to a function of torch unless ``qkv_bias_separate`` is set,
    and subclasses of ``nn.TransformerEncoderLayer`` inherit its fused inference path.
    """
    if getattr(module, "qkv_bias_separate", None) is False:
        module.qkv_bias_separate = True  # type: ignore[assignment]
    if isinstance(module, nn.TransformerEncoderLayer) and not isinstance(module, QuantizedModule):
        module.activation_relu_or_gelu = 0
    if isinstance(module, nn.TransformerEncoder):
        module.use_nested_tensor = False


def unrounded_additions(model: nn.Module) -> list[str]:
    """Returns the names of the classes whose code probably adds or concatenates tensors without rounding the results.

    These are foreign modules without a counterpart that own a quantized LayerNorm, and a foreign model itself.
    """
    root = model.network if isinstance(model, ForeignModel) else model
    names = {type(root): type(root).__name__}
    for module in model.modules():
        if any(isinstance(child, torch_layers.QuantizedLayerNorm) for child in module.children()):
            names.setdefault(type(module), type(module).__name__)
    rounding = (QuantizedModule, nn.Sequential, nn.ModuleList)
    ours = ("vitfast.layers.", "vitfast.models.")
    return sorted(
        {names[cls] for cls in names if not issubclass(cls, rounding) and not cls.__module__.startswith(ours)}
    )


@cache
def _parametrized_counterpart(parametrized: type[nn.Module]) -> type[QuantizedModule]:
    """Returns the counterpart of the class that torch made for one parametrized module."""
    return type(f"Quantized{parametrized.__name__}", (torch_layers.QuantizedParametrizedLinear, parametrized), {})
