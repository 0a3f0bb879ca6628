"""Weights that a quantized checkpoint stores in fewer bits than the model computes with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vitfast.errors import UserError

# int8 weights [O, ...] under KEY have the scales [O] of their output channels under KEY + SCALE
SCALE = ".scale"


def unpack_weights(state: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Turns packed weights into float32 ones; what is not packed stays what it is.

    Args:
        state: weights, some of them in 8 or 16 bits, int8 ones with their scales.
        source: the file, for messages.

    Returns:
        The weights under their own keys, and the scales by the key of their weight.

    Raises:
        UserError: scales do not fit their weight.
    """
    scales = {
        key.removesuffix(SCALE): tensor
        for key, tensor in state.items()
        if key.endswith(SCALE) and (weight := state.get(key.removesuffix(SCALE))) is not None and _is_integer(weight)
    }
    weights = {}
    for key, tensor in state.items():
        scale = scales.get(key)
        if scale is not None:
            if scale.shape != tensor.shape[:1]:
                raise UserError(
                    f"{source} is damaged: {key} has the shape {list(tensor.shape)}, its scales {list(scale.shape)}"
                )
            weights[key] = tensor.float() * scale.view(-1, *(1,) * (tensor.dim() - 1))
        elif key.removesuffix(SCALE) in scales:
            continue
        else:
            narrow = tensor.is_floating_point() and tensor.element_size() < 4
            weights[key] = tensor.float() if narrow else tensor
    return weights, scales


def _is_integer(weight: Tensor) -> bool:
    return weight.dtype == torch.int8 and weight.dim() > 0
