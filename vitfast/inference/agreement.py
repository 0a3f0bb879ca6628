"""How well an accelerated model agrees with its source, as a whole and layer by layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitfast.errors import UserError
from vitfast.inference.accelerated_model import AcceleratedModel
from vitfast.inference.acceleration_report import Agreement
from vitfast.inference.packed.normalization import Normalization
from vitfast.inference.packed.own_block import BlockInPlace
from vitfast.inference.packed.packed_block import PackedBlock, PackedLastBlock
from vitfast.inference.packed.packed_reuse_block import PackedReuseBlock
from vitfast.inference.shallow_copy import shallow_copy


class _Comparison(nn.Module):
    """Runs a block of the source in its place, and the packed one beside it on the same input."""

    def __init__(
        self, source: nn.Module, packed: nn.Module, device: torch.device, errors: dict[str, list[Tensor]]
    ) -> None:
        super().__init__()
        self.source = source
        self.device = device
        self.packed: Any = packed
        self.errors = errors

    def forward(self, x: Tensor, *arguments: Any, **options: Any) -> Any:
        expected = self.source(x, *arguments, **options)
        if isinstance(self.packed, PackedReuseBlock):
            moved = {name: self._moved(value) for name, value in options.items()}
            found, wanted = self.packed(self._moved(x), *map(self._moved, arguments), **moved)[0], expected[0]
        else:
            found = self.packed(self._moved(x))
            wanted = expected[0] if isinstance(expected, tuple) else expected
            wanted = wanted[:, : found.shape[1]]  # the last block computes only what the head reads
        wanted = wanted.to(found.device, torch.float64)
        distance = (found.double() - wanted).norm() / wanted.norm()
        self.errors.setdefault(self.packed.name, []).append(distance)
        return expected

    def _moved(self, value: Any) -> Any:
        return value.to(self.device) if isinstance(value, Tensor) else value


@torch.no_grad()
def check_agreement(
    source: nn.Module, accelerated: AcceleratedModel, images: Tensor, normalization: Normalization | None = None
) -> Agreement:
    """Runs both models on some images.

    Args:
        source: is left alone, and runs in evaluation.
        accelerated: made of it.
        images: ``[B, in_chans, H, W]``, as the accelerated model takes them; B at least 1.
        normalization: what the accelerated model does to images itself, and the source does not.

    Raises:
        UserError: there are no images.
    """
    if not isinstance(images, Tensor) or images.dim() != 4 or len(images) == 0:
        raise UserError("check= takes images as the model does, [B, channels, height, width], at least one")
    errors: dict[str, list[Tensor]] = {}
    made: dict[nn.Module, nn.Module] = {}
    for packed in accelerated.modules():
        if isinstance(packed, (PackedBlock, PackedLastBlock, PackedReuseBlock, BlockInPlace)):
            original = source.get_submodule(packed.name)
            made[original] = _Comparison(shallow_copy(original, {}), packed, accelerated.device, errors)
    parameter = next(source.parameters())
    given = images.to(parameter.device)
    if normalization is not None:
        given = normalization.apply(given if given.dtype == torch.uint8 else given.float() * 255.0)
    expected = _results(shallow_copy(source, made)(given.to(parameter.dtype)))
    found = _results(accelerated(images.to(accelerated.device)))
    pairs = [
        (one.double().flatten(1).cpu(), other.double().flatten(1).cpu())
        for one, other in zip(expected, found, strict=True)
    ]
    cosine = min(float(torch.cosine_similarity(one, other).min()) for one, other in pairs)
    top1 = min(float((one.argmax(1) == other.argmax(1)).double().mean()) for one, other in pairs)
    means = {name: float(torch.stack(values).mean()) for name, values in errors.items()}
    worst = max(means, key=lambda name: means[name], default="")
    return Agreement(len(images), cosine, top1, worst, means.get(worst, 0.0))


def _results(output: Any) -> list[Tensor]:
    """The tensors that a model returns."""
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if hasattr(output, "values") else output
    return [value for value in values if isinstance(value, Tensor)]
