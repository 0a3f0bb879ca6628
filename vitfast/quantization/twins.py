"""Which quantized twin a module has."""

from __future__ import annotations

import sys

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from vitfast import layers, models
from vitfast.layers.relation_attention import RelationAttention
from vitfast.layers.token_performer import TokenPerformer
from vitfast.layers.token_transformer import TokenAttention, TokenTransformer
from vitfast.models.dvt_exit import DVTExit
from vitfast.models.torchvision_model import TorchvisionModel
from vitfast.quantization import generic_layers, hybrid_layers, reuse_layers, vitfast_layers, vitfast_models
from vitfast.quantization.parametrized_linear import is_parametrized, parametrized_twin
from vitfast.quantization.quantized_module import QuantizedModule

# exact type -> twin; a subclass may compute something else, so it does not inherit its base's twin
_TWINS: dict[type[nn.Module], type[QuantizedModule]] = {
    nn.Linear: generic_layers.QuantizedLinear,
    nn.Conv2d: generic_layers.QuantizedConv2d,
    nn.LayerNorm: generic_layers.QuantizedLayerNorm,
    nn.MultiheadAttention: generic_layers.QuantizedMultiheadAttention,
    NonDynamicallyQuantizableLinear: generic_layers.QuantizedOutProjection,
    layers.LayerNorm: vitfast_layers.QuantizedVitfastLayerNorm,
    layers.Mlp: vitfast_layers.QuantizedMlp,
    layers.Attention: vitfast_layers.QuantizedAttention,
    layers.GatedPositionalAttention: vitfast_layers.QuantizedGatedPositionalAttention,
    layers.Block: vitfast_layers.QuantizedBlock,
    layers.PatchEmbed: vitfast_layers.QuantizedPatchEmbed,
    layers.PaddedPatchEmbed: reuse_layers.QuantizedPaddedPatchEmbed,
    layers.ReuseBlock: reuse_layers.QuantizedReuseBlock,
    layers.FeatureReuse: reuse_layers.QuantizedFeatureReuse,
    layers.RelationReuse: reuse_layers.QuantizedRelationReuse,
    RelationAttention: reuse_layers.QuantizedRelationAttention,
    TokenAttention: reuse_layers.QuantizedTokenAttention,
    TokenTransformer: reuse_layers.QuantizedTokenTransformer,
    TokenPerformer: reuse_layers.QuantizedTokenPerformer,
    models.VisionTransformer: vitfast_models.QuantizedVisionTransformer,
    models.DistilledVisionTransformer: vitfast_models.QuantizedDistilledVisionTransformer,
    models.HybridViT: hybrid_layers.QuantizedHybridViT,
    layers.StdConv2d: hybrid_layers.QuantizedStdConv2d,
    models.ConViT: vitfast_models.QuantizedConViT,
    models.T2TViT: vitfast_models.QuantizedT2TViT,
    models.DVT: vitfast_models.QuantizedDVT,
    DVTExit: vitfast_models.QuantizedDVTExit,
}

# layers whose weights are read by the module above them, as a part of its softmax
_NEVER_QUANTIZED: dict[type[nn.Module], tuple[str, ...]] = {layers.GatedPositionalAttention: ("pos_proj",)}

# what a configuration is about: a kind of these without a twin is not passed over in silence
_LAYERS = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.MultiheadAttention)


def find_twin(module: nn.Module) -> type[QuantizedModule] | None:
    """Returns the quantized subclass of a module's class, None if there is none."""
    twins = _TWINS
    if "timm.models.vision_transformer" in sys.modules:
        from vitfast.quantization.timm_layers import TIMM_TWINS

        twins = twins | TIMM_TWINS
    if "torchvision.models.vision_transformer" in sys.modules:
        from vitfast.quantization.torchvision_layers import TORCHVISION_TWINS

        twins = twins | TORCHVISION_TWINS
    if is_parametrized(module):
        return parametrized_twin(type(module))  # type: ignore[arg-type]
    return twins.get(type(module))


def lacks_twin(module: nn.Module) -> bool:
    """Whether a module is a layer that a configuration is about, of a class that is not known."""
    return isinstance(module, _LAYERS) and find_twin(module) is None


def never_quantized(model: nn.Module) -> set[str]:
    """Returns the names of the layers that no configuration is about."""
    return {
        f"{name}.{child}" if name else child
        for name, module in model.named_modules()
        for child in _NEVER_QUANTIZED.get(type(module), ())
    }


def unseen_additions(model: nn.Module) -> list[str]:
    """Returns the names of the classes whose code adds or concatenates float32 tensors, as far as can be told.

    These are the modules without a twin that own a quantized LayerNorm, or a model without one itself.
    """
    owners = {
        type(module)
        for module in model.modules()
        if not isinstance(module, (QuantizedModule, nn.Sequential, nn.ModuleList))
        and any(isinstance(child, nn.LayerNorm) and isinstance(child, QuantizedModule) for child in module.children())
    }
    wrapped = model.network if isinstance(model, TorchvisionModel) else model
    if not isinstance(wrapped, (QuantizedModule, nn.Sequential)):
        owners.add(type(model))
    return sorted(owner.__name__ for owner in owners)
