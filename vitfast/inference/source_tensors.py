"""Records what an accelerated model holds of its source's tensors, for ``state_dict``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitfast.inference.ir import LinearSpec
from vitfast.inference.modules.linear import SourceRows


class SourceTensors:
    """Copies the tensors of a source model to a device, each at most once.

    Args:
        source: the source model.
        device: device of the copies.
    """

    def __init__(self, source: nn.Module, device: torch.device) -> None:
        self._source = source
        self._device = device
        self._copies: dict[int, Tensor] = {}
        self._converted_keys: set[str] = set()
        self._keys: dict[int, tuple[str, ...]] = {}
        for key, tensor in source.state_dict(keep_vars=True).items():
            self._keys[id(tensor)] = (*self._keys.get(id(tensor), ()), key)

    def copy(self, tensor: Tensor) -> Tensor:
        """Returns a copy of a source tensor, always the same one."""
        if id(tensor) not in self._copies:
            self._copies[id(tensor)] = tensor.detach().to(self._device, copy=True)
        return self._copies[id(tensor)]

    def replace(self, tensor: Tensor, copied: Tensor) -> None:
        """Makes ``copied`` the copy of a source tensor."""
        self._copies[id(tensor)] = copied

    def adopt(self, original: nn.Module, copied: nn.Module, *, recurse: bool = True) -> None:
        """Makes the tensors of a copied module the copies of the original's, with or without those of submodules."""
        for of in (nn.Module.named_parameters, nn.Module.named_buffers):
            copies = dict(of(copied, recurse=recurse, remove_duplicate=False))
            for key, tensor in of(original, recurse=recurse, remove_duplicate=False):
                if key in copies:
                    self._copies[id(tensor)] = copies[key]

    def rows(self, spec: LinearSpec, first: int, last: int) -> tuple[Tensor, tuple[SourceRows, ...]]:
        """Returns the rows ``first`` to ``last`` of a layer's weights, ``[last - first, K]``, and where they are from.

        The layer that stores them converts them, so that ``state`` leaves them to its ``source_rows``.
        """
        weights, places = [], []
        offset = 0
        for weight in spec.weights:
            start, stop = max(first - offset, 0), min(last - offset, weight.shape[0])
            offset += weight.shape[0]
            if start >= stop:
                continue
            keys = self._keys.get(id(weight), ())
            self._converted_keys.update(keys)
            weights.append(weight.detach()[start:stop].flatten(1).to(self._device))
            places.append(SourceRows(keys, start, stop - start, tuple(weight.shape[1:])))
        return weights[0] if len(weights) == 1 else torch.cat(weights), tuple(places)

    def bias(self, spec: LinearSpec, first: int, last: int) -> Tensor | None:
        """Returns the entries ``first`` to ``last`` of a layer's biases; None if it has none."""
        if all(bias is None for bias in spec.biases):
            return None
        if len(spec.biases) == 1 and spec.biases[0] is not None and (first, last) == (0, spec.out_features):
            return self.copy(spec.biases[0])
        is_partial = any(bias is None for bias in spec.biases)
        sizes = [weight.shape[0] for weight in spec.weights] if is_partial else [0] * len(spec.biases)
        parts = [
            torch.zeros(size, device=self._device) if bias is None else bias.detach().to(self._device)
            for size, bias in zip(sizes, spec.biases, strict=True)
        ]
        return torch.cat(parts)[first:last].clone()

    def state(self) -> dict[str, Tensor | None]:
        """Returns the source's state dict with copies; None for tensors that layers have converted."""
        return {
            key: None if key in self._converted_keys else self.copy(tensor)
            for key, tensor in self._source.state_dict(keep_vars=True).items()
        }
