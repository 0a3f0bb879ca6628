"""Attention maps of a checkpoint drawn over image files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from vitfast.device import autocast
from vitfast.errors import UserError, explain_os_error
from vitfast.evaluation.image_files import restore_pixels
from vitfast.evaluation.plots import draw_attention
from vitfast.inference.attention_maps import attention_layers, forward_with_maps
from vitfast.inference.attention_rollout import attention_grid, attention_rollout
from vitfast.models import ImageModel
from vitfast.runs.trained_model import TrainedModel

_ROLLOUT, _ALL = "rollout", "all"


@dataclass(frozen=True)
class View:
    """The panels of a figure.

    Attributes:
        layers: indices of the layers, one panel each.
        head: ``"mean"``, or the index of a head.
        name: suffix of the file names; ``"rollout"`` and ``"all"`` begin with a panel of the rollout.
    """

    layers: Sequence[int]
    head: int | Literal["mean"]
    name: str


def draw_images(
    trained: TrainedModel,
    view: View,
    figures: dict[Path, Path],
    batches: Iterable[tuple[list[Path], Tensor]],
    *,
    precision: str,
) -> Iterator[tuple[Path, str, bool]]:
    """Draws a figure for each image.

    Args:
        trained: the model.
        view: the layers and heads to draw.
        figures: image file -> figure file.
        batches: from ``read_batches``.
        precision: ``fp32`` or ``bf16`` (autocast).

    Yields:
        The image file, the predicted class and its probability, and whether an existing figure was replaced.

    Raises:
        UserError: a figure cannot be written.
    """
    for batch, images in batches:
        with torch.inference_mode(), autocast(trained.device, precision):
            output, maps = forward_with_maps(trained.model, images, head=view.head)
        logits = output[-1] if isinstance(output, tuple) else output  # the last exit
        best = zip(*(column.tolist() for column in logits.float().softmax(dim=1).max(dim=1)), strict=True)
        titles = [f"{trained.class_names[index]} {value:.1%}" for value, index in best]
        panels = _panels(trained.model, maps[-(len(maps) // trained.model.num_exits) :], view)
        pixels = restore_pixels(images, trained.data["mean"], trained.data["std"])
        for index, path in enumerate(batch):
            figure, grids = figures[path], [(label, grids_BGG[index]) for label, grids_BGG in panels]
            replaced = figure.exists()
            with explain_os_error(f"{figure} cannot be written", f"; check target={figure.parent}"):
                figure.parent.mkdir(parents=True, exist_ok=True)
                draw_attention(pixels[index], grids, figure, titles[index], path.name)
            yield path, titles[index], replaced


def choose_view(model: ImageModel, layer: str, head: str) -> View:
    """Checks the options ``layer`` and ``head`` against a model.

    Raises:
        UserError: the layer or head does not exist, or they cannot be combined.
    """
    layers = attention_layers(model)
    num_layers = len(layers) // model.num_exits
    head_number: int | Literal["mean"] = "mean"
    if head != "mean":
        head_number = _number("head", head, layers[0].num_heads, "mean")
    if head_number != "mean" and layer == _ROLLOUT:
        raise UserError(
            f"head={head} cannot be combined with layer=rollout: heads of the same number in different layers are "
            "unrelated; use head=mean, or layer=all or a layer's number"
        )
    if layer in (_ROLLOUT, _ALL):
        chosen = range(num_layers if layer == _ALL else 0)
        name = layer
    else:
        number = _number("layer", layer, num_layers, "rollout or all")
        chosen = range(number, number + 1)
        name = f"layer{number}"
    return View(chosen, head_number, name if head_number == "mean" else f"{name}_head{head_number}")


def figure_names(paths: Sequence[Path], target: Path, view: str) -> dict[Path, Path]:
    """Returns a unique figure file in the target folder for every image: ``photo_rollout.png`` for ``photo.jpg``.

    If several images have the same stem, the later ones get a number: ``photo-2_rollout.png``. No image is
    overwritten.
    """
    # some file systems are case-insensitive
    taken = {str(path.resolve()).casefold() for path in paths}
    names = {}
    for path in paths:
        count, name = 1, target / f"{path.stem}_{view}.png"
        while str(name.resolve()).casefold() in taken:
            count += 1
            name = target / f"{path.stem}-{count}_{view}.png"
        taken.add(str(name.resolve()).casefold())
        names[path] = name
    return names


def _number(name: str, text: str, count: int, words: str) -> int:
    if text.isdecimal() and int(text) < count:
        return int(text)
    raise UserError(f"{name}={text} does not exist; this model's numbers are 0 to {count - 1}, or use {words}")


def _panels(model: ImageModel, maps: list[Tensor], view: View) -> list[tuple[str, Tensor]]:
    """Returns label and grids ``[B, G, G]`` of each panel."""
    reader: Literal["token", "mean"] = getattr(model.fields, "pooling", "token")
    head = "mean of the heads" if view.head == "mean" else f"head {view.head}"
    panels = []
    if view.name in (_ROLLOUT, _ALL):
        panels.append(("rollout", attention_grid(attention_rollout(maps), reader=reader)))
    for layer in view.layers:
        panels.append((f"layer {layer}, {head}", attention_grid(maps[layer][:, 0], reader=reader)))
    return panels
