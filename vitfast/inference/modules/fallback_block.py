"""Blocks where the source's code and accelerated blocks meet."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from vitfast.errors import UserError
from vitfast.inference.ir import FallbackSpec
from vitfast.inference.modules.block import InferenceBlock


class FallbackBlock(nn.Module):
    """A copy of a source block that was not recognised; it runs the source's code, in float32, with its hooks.

    ``dtype``: dtype of the accelerated model's tokens.
    """

    path = "source's forward"

    def __init__(self, spec: FallbackSpec, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.name = spec.name
        self.why = spec.why
        self.dtype = dtype
        self.module = copy.deepcopy(spec.module).to(device).eval().requires_grad_(False)

    def forward(self, *arguments: Any, **options: Any) -> Any:
        if self.dtype == torch.float32:
            return self.module(*arguments, **options)
        arguments, options = _cast((arguments, options), torch.float32)
        return _cast(self.module(*arguments, **options), self.dtype)


class ForeignModelBlock(nn.Module):
    """An accelerated block within a model that runs its own ``forward``, in place of the source's block."""

    def __init__(self, block: InferenceBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """Transforms ``x`` ``[B, N, C]``.

        Raises:
            UserError: the model passes a mask or another option.
        """
        given = [str(index) for index, value in enumerate(arguments) if value is not None and value is not False]
        given += [name for name, value in options.items() if value is not None and value is not False]
        if given:
            raise UserError(
                f"{self.block.name} of this accelerated model takes tokens only, and was given {', '.join(given)}; run "
                "the source model for masks and other options"
            )
        out: Tensor = self.block(x.float().contiguous())
        return out.to(x.dtype)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Casts the floating-point tensors in an argument or a result."""
    return tree_map_only(Tensor, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, value)
