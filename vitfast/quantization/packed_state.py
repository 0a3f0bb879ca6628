"""The weights of a converted model in the narrowest types that hold them exactly, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vitfast.quantization.int8_arithmetic import Int8Arithmetic, quantize_weight
from vitfast.quantization.quantize import quantized_modules
from vitfast.quantization.quantized_module import QuantizedModule
from vitfast.weights.source_checkpoint import SCALE, unpack_weights

_NARROW_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16)


def pack_state(model: nn.Module) -> dict[str, Tensor]:
    """Packs the state of a converted model.

    int8 weights become integers and their scales; rounded floating-point and fixed-point weights get 8 or 16 bits where
    these hold every value (TF32 needs 32). What is not rounded stays float32.

    Args:
        model: converted by ``quantize_``.

    Returns:
        Tensors on the CPU, the model's keys among them.
    """
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    for name, module in quantized_modules(model).items():
        for key in _rounded_keys(name, module, state):
            if isinstance(module.quantization.arithmetic, Int8Arithmetic):
                scale = module.weight_scale.detach().cpu()  # type: ignore[operator]
                state[key + SCALE] = scale
                state[key] = quantize_weight(state[key], scale).to(torch.int8)
            else:
                state[key] = _narrowed(state[key])
    return state


def load_packed_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Loads what ``pack_state`` made, or a plain state dict, into a model that is quantized already: the same bits.

    Args:
        model: quantized as the one that was packed.
        state: its weights.
        source: the file, for messages.

    Raises:
        UserError: scales do not fit their weight.
        RuntimeError: keys or shapes do not fit.
    """
    weights, scales = unpack_weights(state, source)
    model.load_state_dict(weights)
    modules = quantized_modules(model)
    with torch.no_grad():
        for key, scale in scales.items():  # derived from rounded weights they could differ in the last bit
            stored: Tensor = modules[key.rpartition(".")[0]].weight_scale  # type: ignore[assignment]
            stored.copy_(scale)
            model.get_parameter(key).copy_(weights[key])


def _rounded_keys(name: str, module: QuantizedModule, state: dict[str, Tensor]) -> list[str]:
    if module.quantization.config is None or not module.quantization.converted:
        return []
    keys = [f"{name}.weight", f"{name}.in_proj_weight"]
    if isinstance(module.quantization.arithmetic, Int8Arithmetic):
        return [key for key in keys if key in state and hasattr(module, "weight_scale")]
    return [key for key in keys if key in state]


def _narrowed(weight: Tensor) -> Tensor:
    """Returns the weight in the narrowest type that gives back every bit of it."""
    for dtype in _NARROW_DTYPES:
        narrow = weight.to(dtype)
        if torch.equal(narrow.to(weight.dtype).view(torch.int32), weight.view(torch.int32)):
            return narrow
    return weight
