"""Turns the tensors of a description into packed layers, each of them once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitfast.inference.ir import LinearSpec, NormSpec, Precision
from vitfast.inference.packed.normalization import Normalization
from vitfast.inference.packed.packed_linear import PackedLinear, SourceRows
from vitfast.inference.packed.packed_norm import PackedNorm
from vitfast.inference.packed.plain_product import round_to_fp16
from vitfast.ops.packed import has_packed


class Packer:
    """Packs what a model consists of, and remembers what became of each tensor.

    Args:
        source: whose tensors are packed.
        precision: of the layers that a description leaves open.
        device: where the accelerated model lies.
        normalization: what the model does to its images first, or None.

    Attributes:
        image_by_image: whether images pass one after the other through what of a whole batch would leave a CPU's cache.
    """

    image_by_image = True
    _layer: type[PackedLinear] = PackedLinear

    def __init__(
        self,
        source: nn.Module,
        precision: Precision,
        device: torch.device,
        normalization: Normalization | None = None,
    ) -> None:
        self.precision = precision
        self.device = device
        self.normalization = normalization
        self._keys: dict[int, tuple[str, ...]] = {}
        for key, tensor in source.state_dict(keep_vars=True).items():
            self._keys[id(tensor)] = (*self._keys.get(id(tensor), ()), key)
        self._kept: dict[int, Tensor] = {}
        self._packed_keys: set[str] = set()

    @property
    def stream_dtype(self) -> torch.dtype:
        """Type of the tokens that flow from part to part."""
        return torch.float32

    def linear(
        self, described: LinearSpec, *, rows: slice | None = None, column_order: Tensor | None = None
    ) -> PackedLinear:
        """Packs a linear layer, or some of its rows."""
        weights, places = [], []
        first, last = (0, described.out_features) if rows is None else (rows.start, rows.stop)
        offset = 0
        for weight in described.weights:
            start, stop = max(first - offset, 0), min(last - offset, weight.shape[0])
            offset += weight.shape[0]
            if start >= stop:
                continue
            keys = self._keys.get(id(weight), ())
            self._packed_keys.update(keys)
            weights.append(weight.detach()[start:stop].flatten(1).to(self.device))
            places.append(SourceRows(keys, start, stop - start, tuple(weight.shape[1:])))
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        precision = described.precision or self.precision
        bias = self._bias(described, first, last)
        return self._layer(weight, bias, precision, tuple(places), column_order)

    def linear_of_pixels(self, described: LinearSpec, scale: Tensor, shift: Tensor) -> PackedLinear:
        """Packs a linear layer that is to read ``x`` where the source reads ``x * scale + shift``.

        The source's weight is kept beside it, for the state: it does not follow from the packed one bit by bit.

        Args:
            described: the layer.
            scale: ``[K]``.
            shift: ``[K]``.
        """
        (weight,), (bias,) = described.weights, described.biases
        weight = weight.detach().to(self.device).flatten(1).double()
        shifted = weight @ shift.to(self.device).double()
        if bias is not None:
            shifted = shifted + bias.detach().to(self.device)
        rows = (SourceRows((), 0, weight.shape[0], (weight.shape[1],)),)
        scaled = (weight * scale.to(self.device)).float()
        return self._layer(scaled, shifted.float(), described.precision or self.precision, rows)

    def norm(self, described: NormSpec, *, column_order: Tensor | None = None) -> PackedNorm:
        """Packs a LayerNorm for a layer that is packed so; where the precision rounds it, gamma is rounded for good."""
        rounds = (described.precision or self.precision) == "fp16_32"
        weight = self.keep(described.weight)
        if weight is not None and rounds and described.precision is None:
            weight = round_to_fp16(weight)
            self._kept[id(described.weight)] = weight
        bias = self.keep(described.bias)
        if column_order is not None:
            order = column_order.to(self.device)
            weight, bias = (None if tensor is None else tensor[order] for tensor in (weight, bias))
        return PackedNorm(weight, bias, described.eps, rounds_input=rounds)

    def optional_norm(self, described: NormSpec | None) -> nn.Module:
        """Packs a LayerNorm, or an identity for None."""
        return nn.Identity() if described is None else self.norm(described)

    def keep(self, tensor: Tensor | None) -> Tensor | None:
        """Returns a copy of one of the source's tensors, the same one whenever it is asked for."""
        if tensor is None:
            return None
        if id(tensor) not in self._kept:
            self._kept[id(tensor)] = tensor.detach().to(self.device, copy=True)
        return self._kept[id(tensor)]

    def in_stream(self, tensor: Tensor | None) -> Tensor | None:
        """Returns what ``keep`` does, in the type of the tokens that it meets."""
        kept = self.keep(tensor)
        return None if kept is None else kept.to(self.stream_dtype)

    def has(self, operator: str) -> bool:
        """Whether an operator on packed weights runs what is packed here."""
        return has_packed(operator, self.device.type)

    def adopt(self, original: nn.Module, copied: nn.Module) -> None:
        """Takes the tensors of a module's copy as the copies of the module's."""
        copies = dict(copied.state_dict(keep_vars=True))
        for key, tensor in original.state_dict(keep_vars=True).items():
            if key in copies:
                self._kept[id(tensor)] = copies[key]

    def adopt_own(self, original: nn.Module, copied: nn.Module) -> None:
        """As ``adopt``, for the tensors of the modules themselves and not of those within."""
        for mine, theirs in ((original._parameters, copied._parameters), (original._buffers, copied._buffers)):
            for key, tensor in mine.items():
                if tensor is not None and theirs.get(key) is not None:
                    self._kept[id(tensor)] = theirs[key]  # type: ignore[assignment]

    def kept_state(self, source: nn.Module) -> dict[str, Tensor | None]:
        """Returns the source's state dict, with None for what is packed and copies of all else."""
        return {
            key: None if key in self._packed_keys else self.keep(tensor)
            for key, tensor in source.state_dict(keep_vars=True).items()
        }

    def _bias(self, described: LinearSpec, first: int, last: int) -> Tensor | None:
        if all(bias is None for bias in described.biases):
            return None
        if len(described.biases) == 1 and (first, last) == (0, described.out_features):
            return self.keep(described.biases[0])
        parts = [
            torch.zeros(weight.shape[0], device=self.device) if bias is None else bias.detach().to(self.device)
            for weight, bias in zip(described.weights, described.biases, strict=True)
        ]
        return torch.cat(parts)[first:last].clone()
