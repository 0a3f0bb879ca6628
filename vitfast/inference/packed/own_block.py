"""A part of the source that was not recognised and runs its own code within an accelerated model."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from vitfast.errors import UserError
from vitfast.inference.ir import FallbackSpec
from vitfast.inference.packed.packed_block import PackedBlock
from vitfast.inference.packed.packer import Packer


class OwnBlock(nn.Module):
    """A copy of the source's block, in evaluation, with its hooks.

    Args:
        described: the block and why it was not recognised.
        packer: takes over its tensors.
    """

    def __init__(self, described: FallbackSpec, packer: Packer) -> None:
        super().__init__()
        self.name = described.name
        self.why = described.why
        self.dtype = packer.stream_dtype
        self.module = copy.deepcopy(described.module).to(packer.device).eval().requires_grad_(False)
        packer.adopt(described.module, self.module)

    @property
    def path(self) -> str:
        """What runs it."""
        return "own forward"

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """Runs the block, in float32 as its source."""
        if self.dtype == torch.float32:
            return self.module(*arguments, **options)
        result = self.module(*_cast(arguments, torch.float32), **_cast(options, torch.float32))
        return _cast(result, self.dtype)


class BlockInPlace(PackedBlock):
    """A packed block that stands in a foreign model's own forward, at the place of the source's block.

    Args:
        described: the block.
        packer: packs.
    """

    def forward(self, x: Any, *arguments: Any, **options: Any) -> Any:
        """Transforms ``x`` ``[B, N, C]``.

        Raises:
            UserError: the model passes a mask or another option.
        """
        given = [str(index) for index, value in enumerate(arguments) if value is not None and value is not False]
        given += [name for name, value in options.items() if value is not None and value is not False]
        if given:
            raise UserError(
                f"{self.name} of this accelerated model takes tokens only, and was given {', '.join(given)}; run the "
                "source model for masks and other options"
            )
        return super().forward(x.float().contiguous()).to(x.dtype)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Casts the floating-point tensors in an argument or a result."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, (tuple, list)):
        return type(value)(_cast(one, dtype) for one in value)
    if isinstance(value, dict):
        return {key: _cast(one, dtype) for key, one in value.items()}
    return value
