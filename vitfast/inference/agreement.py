"""Agreement of an accelerated model with its source, as a whole and layer by layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from vitfast.errors import UserError
from vitfast.inference.accelerated_model import AcceleratedModel
from vitfast.inference.acceleration_report import Agreement
from vitfast.inference.image_tower import ImageTower
from vitfast.inference.modules.block import InferenceBlock
from vitfast.inference.modules.cascade import ReuseBlock
from vitfast.inference.modules.transformer import InferenceTransformer, LastBlock
from vitfast.inference.normalization import Normalization
from vitfast.inference.shallow_copy import shallow_copy


class _Comparison(nn.Module):
    """Runs a source block in its place, and the accelerated block on ``device`` on the same input.

    ``errors`` (name of a block -> its relative L2 errors) is extended at each call; ``options`` are passed to the
    accelerated block.
    """

    def __init__(
        self,
        source: nn.Module,
        accelerated: nn.Module,
        device: torch.device,
        errors: dict[str, list[Tensor]],
        options: dict[str, Any],
    ) -> None:
        super().__init__()
        self.source = source
        self.accelerated: Any = accelerated
        self.device = device
        self.errors = errors
        self.options = options

    def forward(self, x: Tensor, *arguments: Any, **options: Any) -> Any:
        expected = self.source(x, *arguments, **options)
        reference = expected[0] if isinstance(expected, tuple) else expected
        if isinstance(self.accelerated, ReuseBlock):
            given = tree_map_only(Tensor, lambda tensor: tensor.to(self.device), ((x, *arguments), options))
            found = self.accelerated(*given[0], **given[1])[0]
        else:
            if x.dim() == 4:  # a grid of tokens
                x, reference = x.flatten(1, 2), reference.flatten(1, 2)
            found = self.accelerated(x.to(self.device), **self.options)
            reference = reference[:, : found.shape[1]]  # the last block computes only the tokens that the head reads
        reference = reference.to(found.device, torch.float64)
        error = (found.double() - reference).norm() / reference.norm()
        self.errors.setdefault(self.accelerated.name, []).append(error)
        return expected


@torch.no_grad()
def check_agreement(
    source: nn.Module, accelerated: AcceleratedModel, images: Tensor, normalization: Normalization | None = None
) -> Agreement:
    """Compares both models on ``images`` ``[B, in_chans, H, W]``, as the accelerated model takes them.

    Of a model with a text tower the image towers are compared. The source is not modified; it takes the images after
    ``normalization``, which the accelerated model includes.

    Raises:
        UserError: there are no images, or the model takes patches only.
    """
    if not isinstance(images, Tensor) or images.dim() != 4 or len(images) == 0:
        raise UserError("check= takes images as the model does, [B, channels, height, width], at least one")
    errors: dict[str, list[Tensor]] = {}
    copies: dict[nn.Module, nn.Module] = {}
    options: dict[nn.Module, dict[str, Any]] = {}
    for model in accelerated.modules():
        if isinstance(model, InferenceTransformer):
            options.update(zip(model.blocks, model.block_options(images.to(accelerated.device)), strict=True))
    for block in accelerated.modules():
        if isinstance(block, (InferenceBlock, LastBlock)):
            original = source.get_submodule(block.name)
            compared = (shallow_copy(original, {}), block, accelerated.device, errors, options.get(block, {}))
            copies[original] = _Comparison(*compared)
    parameter = next(source.parameters())
    given = images.to(parameter.device)
    if normalization is not None:
        given = normalization.apply(given if given.dtype == torch.uint8 else given.float() * 255.0)
    tower = next((module for module in accelerated.modules() if isinstance(module, ImageTower)), None)
    if tower is not None and not tower.adapter.takes_images:
        raise UserError(
            "check= takes images, and this model takes patches with their sizes; compare the outputs instead"
        )
    original = source if tower is None else source.get_submodule(tower.name)
    expected = _outputs(shallow_copy(original, copies)(given.to(parameter.dtype)))
    found = _outputs((tower or accelerated)(images.to(accelerated.device)))
    pairs = [
        (one.double().flatten(1).cpu(), other.double().flatten(1).cpu())
        for one, other in zip(expected, found, strict=True)
    ]
    cosine = min(float(torch.cosine_similarity(one, other).min()) for one, other in pairs)
    top1 = min(float((one.argmax(1) == other.argmax(1)).double().mean()) for one, other in pairs)
    means = {name: float(torch.stack(values).mean()) for name, values in errors.items()}
    worst = max(means, key=lambda name: means[name], default="")
    return Agreement(len(images), cosine, top1, worst, means.get(worst, 0.0))


def _outputs(output: Any) -> list[Tensor]:
    """The tensors that a model returns."""
    return [value for value in tree_leaves(output) if isinstance(value, Tensor)]
