"""A linear layer whose weight is packed for the kernels of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitfast.errors import UserError
from vitfast.inference.ir import Activation, Precision
from vitfast.inference.packed.plain_product import apply_activation, plain_product, restore_weight, store_weight
from vitfast.ops.packed import has_packed


@dataclass(frozen=True)
class SourceRows:
    """Which rows of which of the source's weights a packed weight holds.

    Attributes:
        keys: of the source's state dict; several where it shares a tensor.
        start: the first row.
        count: number of rows.
        shape: of the source's weight, without its rows.
    """

    keys: tuple[str, ...]
    start: int
    count: int
    shape: tuple[int, ...]


class PackedLinear(nn.Module):
    """Computes ``residual + scale * activation(x wᵀ + bias)``.

    Where there is no kernel for packed weights, torch's operators compute the same.

    Args:
        weight: ``[O, K]``, float32. It is packed, not kept.
        bias: ``[O]`` or None; kept as it is.
        precision: of the product.
        rows: what ``weight`` is made of, from the first row to the last.
        column_order: where the columns of the source's weight stand in ``weight``: ``weight = source[:, order]``.
    """

    _may_pack = True

    bias: Tensor | None
    packed: Tensor
    column_order: Tensor | None
    weight_scale: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        precision: Precision,
        rows: tuple[SourceRows, ...],
        column_order: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.precision: Precision = precision
        self.rows = rows
        self.is_packed = self._may_pack and has_packed("packed_linear", weight.device.type)
        self.layout = torch.ops.vitfast.packed_layout.default(precision) if self.is_packed else ""
        if column_order is not None:
            column_order = column_order.to(weight.device)
        weight = weight.detach() if column_order is None else weight.detach()[:, column_order]
        if self.is_packed:
            packed, scale = torch.ops.vitfast.pack_weight.default(weight.contiguous(), precision), None
        else:
            packed, scale = store_weight(weight, precision)
        if self.is_cast and bias is not None:
            bias = bias.to(packed.dtype)
        self.register_buffer("packed", packed)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", bias)
        self.register_buffer("column_order", column_order)

    @property
    def is_cast(self) -> bool:
        """Whether weight, bias and input are of one type, which vitfast's other operators take, too."""
        return False

    def forward(
        self,
        x: Tensor,
        activation: Activation = "none",
        *,
        scale: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Computes the layer.

        Args:
            x: ``[..., K]``, float32.
            activation: after the bias.
            scale: ``[O]`` or None for ones.
            residual: ``[..., O]`` or None for zeros.

        Returns:
            ``[..., O]``, float32.
        """
        if self.is_packed:
            out: Tensor = torch.ops.vitfast.packed_linear.default(
                x, self.packed, self.bias, self.out_features, self.precision, activation, scale, residual
            )
            return out
        out = apply_activation(self.product(x), activation)
        if scale is not None:
            out = out * scale
        return out if residual is None else residual + out

    def product(self, x: Tensor) -> Tensor:
        """Computes ``x wᵀ + bias`` on torch's operators."""
        return plain_product(x, self.packed, self.weight_scale, self.bias, self.precision)

    def unpacked(self) -> Tensor:
        """Returns the weight ``[O, K]`` in float32, rounded as it is stored, in the order of the source's columns."""
        if self.is_packed:
            weight: Tensor = torch.ops.vitfast.unpack_weight.default(
                self.packed, self.out_features, self.in_features, self.precision
            )
        else:
            weight = restore_weight(self.packed, self.weight_scale)
        if self.column_order is None:
            return weight
        return torch.empty_like(weight).index_copy_(1, self.column_order, weight)

    def source_rows(self) -> Iterator[tuple[SourceRows, Tensor]]:
        """Yields the source's weights, as far as they are packed here: which rows, and their values."""
        values = self.unpacked().split([rows.count for rows in self.rows])
        for rows, value in zip(self.rows, values, strict=True):
            yield rows, value.reshape(rows.count, *rows.shape)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows in parentheses."""
        return f"{self.in_features}, {self.out_features}, precision={self.precision!r}, packed={self.is_packed}"

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if not self.is_packed:
            return
        here = torch.ops.vitfast.packed_layout.default(self.precision) if has_packed("packed_linear") else "none"
        if here != self.layout:
            raise UserError(
                f"this accelerated model was pickled with weights in layout {self.layout!r}, and vitfast here reads "
                f"{here!r}; pickle the source model instead, and accelerate it here"
            )
