"""Attention maps of a checkpoint, drawn over image files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vitfast.device import autocast
from vitfast.errors import UserError
from vitfast.evaluation.attention_picture import draw_attention
from vitfast.evaluation.image_files import read_batches
from vitfast.inference.attention_maps import attention_layers, forward_with_maps
from vitfast.inference.attention_rollout import attention_grid, attention_rollout
from vitfast.models import ImageModel
from vitfast.runs.trained_model import TrainedModel

_ROLLOUT, _ALL, _MEAN = "rollout", "all", "mean"


@dataclass(frozen=True)
class View:
    """What is drawn, checked against the model.

    Attributes:
        layers: numbers of the layers that have a panel each.
        head: ``"mean"``, or a head's number.
        with_rollout: whether the rollout has the first panel.
        num_layers: layers of the model, or of its last exit.
        name: for the names of the files.
    """

    layers: Sequence[int]
    head: int | Literal["mean"]
    with_rollout: bool
    num_layers: int
    name: str


def draw_images(
    trained: TrainedModel,
    view: View,
    pictures: dict[Path, Path],
    device: torch.device,
    report: Callable[[Path, str], None],
    *,
    batch_size: int,
    precision: str,
) -> Iterator[tuple[Path, str, bool]]:
    """Draws a figure for each image.

    Args:
        trained: the model.
        view: the layers and heads to draw.
        pictures: image file -> figure file.
        device: where the model is.
        report: called with the file and the reason for each image that cannot be read.
        batch_size: images in a batch.
        precision: ``fp32`` or ``bf16`` (autocast).

    Yields:
        The image file, the predicted class and its probability, and whether an existing figure was replaced.

    Raises:
        UserError: if a figure cannot be written.
    """
    for batch, images in read_batches(trained, list(pictures), batch_size, report):
        with torch.inference_mode(), autocast(device, precision):
            answer, maps = forward_with_maps(trained.model, images.to(device), head=view.head)
        logits = answer[-1] if isinstance(answer, tuple) else answer  # of several exits the last
        titles = _titles(trained, logits)
        panels = _panels(trained.model, maps[-view.num_layers :], view)
        for index, (path, image_CHW) in enumerate(zip(batch, _pixels(trained, images), strict=True)):
            grids = [(label, grids_BGG[index]) for label, grids_BGG in panels]
            yield path, titles[index], _save(image_CHW, grids, pictures[path], titles[index], path)


def choose_view(model: ImageModel, layer: str, head: str) -> View:
    """Checks the options ``layer`` and ``head`` against a model.

    Raises:
        UserError: there is no such layer or head, or they do not go together.
    """
    layers = attention_layers(model)
    num_layers = len(layers) // model.num_exits
    head_number = None if head == _MEAN else _number("head", head, layers[0].num_heads, "mean")
    if head_number is not None and layer == _ROLLOUT:
        raise UserError(
            f"head={head} does not go with layer=rollout: a head has nothing to do with that of the same number in "
            "another layer; take head=mean, or layer=all or a layer's number"
        )
    if layer in (_ROLLOUT, _ALL):
        chosen = range(num_layers if layer == _ALL else 0)
        name = layer
    else:
        number = _number("layer", layer, num_layers, "rollout or all")
        chosen = range(number, number + 1)
        name = f"layer{number}"
    if head_number is not None:
        name += f"_head{head_number}"
    with_rollout = head_number is None and layer in (_ROLLOUT, _ALL)
    return View(chosen, "mean" if head_number is None else head_number, with_rollout, num_layers, name)


def picture_names(paths: Sequence[Path], target: Path, view: str) -> dict[Path, Path]:
    """Gives every image a picture of its own in the target folder: ``photo_rollout.png`` for ``photo.jpg``.

    Where several images have one name, in different folders or formats, the later ones get a number:
    ``photo-2_rollout.png``. No picture takes the place of an image.

    Args:
        paths: image files.
        target: the folder.
        view: what is drawn.
    """
    # not all file systems tell capital letters from small ones
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
    raise UserError(f"{name}={text} is not there; this model's numbers are 0 to {count - 1}, or take {words}")


def _panels(model: ImageModel, maps: list[Tensor], view: View) -> list[tuple[str, Tensor]]:
    """Returns a label and the grids ``[B, G, G]`` of each panel."""
    reader: Literal["token", "mean"] = getattr(model.fields, "pooling", "token")
    head = "mean of the heads" if view.head == "mean" else f"head {view.head}"
    panels = []
    if view.with_rollout:
        panels.append(("rollout", attention_grid(attention_rollout(maps), reader=reader)))
    for layer in view.layers:
        panels.append((f"layer {layer}, {head}", attention_grid(maps[layer][:, 0], reader=reader)))
    return panels


def _titles(trained: TrainedModel, logits: Tensor) -> list[str]:
    """Returns for each image the most probable class and its probability."""
    values, indices = logits.float().softmax(dim=1).max(dim=1)
    names = trained.class_names
    return [f"{names[index]} {value:.1%}" for value, index in zip(values.tolist(), indices.tolist(), strict=True)]


def _pixels(trained: TrainedModel, images: Tensor) -> Iterator[Tensor]:
    """Yields the images as the model sees them, ``[C, H, W]`` in 0..1, without the normalisation."""
    settings: dict[str, Any] = trained.data
    mean_C11, std_C11 = (torch.as_tensor(settings[name], dtype=images.dtype).view(-1, 1, 1) for name in ("mean", "std"))
    yield from (images * std_C11 + mean_C11).clamp(0, 1)


def _save(image_CHW: Tensor, grids: list[tuple[str, Tensor]], picture: Path, title: str, path: Path) -> bool:
    """Draws one picture; returns whether there was one of this name."""
    replaced = picture.exists()
    try:
        picture.parent.mkdir(parents=True, exist_ok=True)
        draw_attention(image_CHW, grids, picture, title, path.name)
    except OSError as error:
        raise UserError(
            f"{picture} cannot be written: {error.strerror or error}; check target={picture.parent}"
        ) from error
    return replaced
