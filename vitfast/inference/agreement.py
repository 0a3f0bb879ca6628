"""Agreement of an accelerated model with its source, as a whole and layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
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

_EXPECTED = (
    "check= takes images as the model does, [B, channels, height, width], at least one, or a loader of such batches"
)


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
    source: nn.Module,
    accelerated: AcceleratedModel,
    images: Tensor | Iterable[Any],
    normalization: Normalization | None = None,
) -> Agreement:
    """Compares both models on ``images`` ``[B, in_chans, H, W]``, as the accelerated model takes them.

    Of a model with a text tower the image towers are compared. The source is not modified; it takes the images after
    ``normalization``, which the accelerated model includes.

    Args:
        source: the source model.
        accelerated: its accelerated copy.
        images: a batch, or a loader of batches: images, or tuples or dictionaries of which the first entry is images.
        normalization: of ``accelerated``.

    Raises:
        UserError: there are no images, or the model takes patches only.
    """
    tower = next((module for module in accelerated.modules() if isinstance(module, ImageTower)), None)
    if tower is not None and not tower.adapter.takes_images:
        raise UserError(
            "check= takes images, and this model takes patches with their sizes; compare the outputs instead"
        )
    errors: dict[str, list[Tensor]] = {}
    options: dict[nn.Module, dict[str, Any]] = {}
    compared = _with_comparisons(source, accelerated, errors, options)
    original = source if tower is None else source.get_submodule(tower.name)
    reference = shallow_copy(original, compared)
    parameter = next(source.parameters())
    cosines, differences, same, num_images = [], [], [], 0
    for batch in _batches(images):
        for model in accelerated.modules():
            if isinstance(model, InferenceTransformer):
                given_options = model.block_options(batch.to(accelerated.device))
                for block, its_options in zip(model.blocks, given_options, strict=True):
                    options.setdefault(block, {}).update(its_options)
        given = batch.to(parameter.device)
        if normalization is not None:
            given = normalization.apply(given if given.dtype == torch.uint8 else given.float() * 255.0)
        expected = _outputs(reference(given.to(parameter.dtype)))
        found = _outputs((tower or accelerated)(batch.to(accelerated.device)))
        pairs = list(zip(expected, found, strict=True))
        cosines.append(min(float(torch.cosine_similarity(one, other).min()) for one, other in pairs))
        differences.append(max(float((one - other).abs().max()) for one, other in pairs))
        same.append(torch.tensor([int((one.argmax(1) == other.argmax(1)).sum()) for one, other in pairs]))
        num_images += len(batch)
    if not num_images:
        raise UserError(_EXPECTED)
    means = {name: float(torch.stack(values).mean()) for name, values in errors.items()}
    worst = max(means, key=lambda name: means[name], default="")
    top1 = int(torch.stack(same).sum(0).min()) / num_images
    return Agreement(num_images, min(cosines), top1, max(differences), worst, means.get(worst, 0.0))


def _with_comparisons(
    source: nn.Module,
    accelerated: AcceleratedModel,
    errors: dict[str, list[Tensor]],
    options: dict[nn.Module, dict[str, Any]],
) -> dict[nn.Module, nn.Module]:
    """Returns source block -> what compares it; ``errors`` and ``options`` (of accelerated blocks) are referred to."""
    compared: dict[nn.Module, nn.Module] = {}
    for block in accelerated.modules():
        if isinstance(block, (InferenceBlock, LastBlock)):
            original = source.get_submodule(block.name)
            copied = shallow_copy(original, {})
            compared[original] = _Comparison(copied, block, accelerated.device, errors, options.setdefault(block, {}))
    return compared


def output_agreement(source: Callable[[Tensor], Any], other: Callable[[Tensor], Any], images: Tensor) -> Agreement:
    """Compares the outputs of two functions on ``images`` ``[B, in_chans, H, W]``."""
    pairs = list(zip(_outputs(source(images)), _outputs(other(images)), strict=True))
    same = min(int((one.argmax(1) == two.argmax(1)).sum()) for one, two in pairs)
    return Agreement(
        num_images=len(images),
        cosine=min(float(torch.cosine_similarity(one, two).min()) for one, two in pairs),
        top1_agreement=same / len(images),
        max_difference=max(float((one - two).abs().max()) for one, two in pairs),
        worst_layer="",
        worst_error=0.0,
    )


def _batches(images: Any) -> Iterator[Tensor]:
    """Yields the batches of ``check_agreement``'s argument."""
    if isinstance(images, (str, bytes)) or not isinstance(images, Iterable):
        raise UserError(_EXPECTED)
    for batch in [images] if isinstance(images, Tensor) else images:
        entry = batch
        if isinstance(batch, Mapping):
            entry = next(iter(batch.values()), None)
        elif isinstance(batch, (tuple, list)):
            entry = batch[0] if batch else None
        if not isinstance(entry, Tensor) or entry.dim() != 4 or len(entry) == 0:
            raise UserError(_EXPECTED)
        yield entry


def _outputs(output: Any) -> list[Tensor]:
    """The tensors that a model returns, each as ``[B, K]`` in float64 on the CPU."""
    return [value.double().flatten(1).cpu() for value in tree_leaves(output) if isinstance(value, Tensor)]
