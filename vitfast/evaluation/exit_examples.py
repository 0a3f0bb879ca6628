"""Images that leave early and images that need every exit, side by side, as a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitfast.figure import new_figure, save_figure
from vitfast.inference import ExitStatistics

# a picture of more classes than this would be too long to look at
MAX_CLASSES = 10
_SIDE_INCHES = 0.75
_LABEL_INCHES = 1.3


@dataclass(frozen=True)
class ExitExample:
    """An image that stands for others.

    Attributes:
        index: its place in the statistics.
        confidence: of the first exit, 0..1.
        correct: whether the answer with which it left is right.
    """

    index: int
    confidence: float
    correct: bool


def easy_and_hard(
    statistics: ExitStatistics, thresholds: Sequence[float], labels: Tensor, class_index: int, count: int
) -> tuple[list[ExitExample], list[ExitExample]]:
    """Chooses images of a class.

    Args:
        statistics: what the exits said.
        thresholds: one an exit.
        labels: the class of each image, ``[n]``.
        class_index: which class.
        count: how many of each kind at most.

    Returns:
        Those that leave at the first exit, the surest first; those that pass to the last, the least sure at the first
        exit first.
    """
    leaves = statistics.exit_index(thresholds)
    sure = statistics.confidence[0]
    right = statistics.correct.gather(0, leaves[None])[0]

    def choose(mask: Tensor, *, descending: bool) -> list[ExitExample]:
        places = mask.nonzero().flatten()
        order = sure[places].argsort(descending=descending, stable=True)[:count]
        return [ExitExample(index, float(sure[index]), bool(right[index])) for index in places[order].tolist()]

    of_class = labels == class_index
    easy = choose(of_class & (leaves == 0), descending=True)
    return easy, choose(of_class & (leaves == statistics.num_exits - 1), descending=False)


def draw_exit_examples(
    rows: Sequence[tuple[str, Sequence[tuple[Tensor, ExitExample]], Sequence[tuple[Tensor, ExitExample]]]],
    count: int,
    path: str | os.PathLike[str],
    title: str,
) -> None:
    """Draws a row for each class: easy images on the left, hard ones on the right; writes the picture as a whole.

    Below each image stands what the first exit's top probability was; red where the answer is wrong.

    Args:
        rows: a class's name, its easy and its hard images ``[C, H, W]`` with values in 0..1.
        count: columns of each kind.
        path: the PNG file.
        title: stands above.
    """
    width, height = _LABEL_INCHES + (2 * count + 0.5) * _SIDE_INCHES, 0.8 + len(rows) * (_SIDE_INCHES + 0.2)
    figure = new_figure(width, height)
    figure.text(0.5, 1 - 0.2 / height, title, ha="center", va="center", fontsize=10, parse_math=False)
    left = [_LABEL_INCHES + side * (count + 0.4) * _SIDE_INCHES for side in (0, 1)]
    for inches, text in zip(left, ("leave at the first exit", "need the last exit"), strict=True):
        figure.text((inches + count * _SIDE_INCHES / 2) / width, 1 - 0.5 / height, text, ha="center", fontsize=9)
    for number, (name, *kinds) in enumerate(rows):
        bottom = height - 0.6 - (number + 1) * (_SIDE_INCHES + 0.2) + 0.2
        middle = (bottom + _SIDE_INCHES / 2) / height
        figure.text(0.1 / width, middle, name, ha="left", va="center", fontsize=9, parse_math=False)
        for inches, examples in zip(left, kinds, strict=True):
            for column, (image_CHW, example) in enumerate(examples):
                side = 0.94 * _SIDE_INCHES
                place = ((inches + column * _SIDE_INCHES) / width, bottom / height, side / width, side / height)
                axes = figure.add_axes(place)
                axes.imshow(image_CHW.float().cpu().permute(1, 2, 0).expand(-1, -1, 3).clamp(0, 1).numpy())
                axes.set_axis_off()
                colour = "black" if example.correct else "tab:red"
                text_at = (place[0] + place[2] / 2, place[1] - 0.09 / height)
                text = f"{example.confidence:.0%}"
                figure.text(*text_at, text, ha="center", va="center", fontsize=7, color=colour)
    save_figure(figure, path)


def restore_pixels(image_CHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Undoes the normalization of an image: values in 0..1."""
    means, stds = (torch.tensor(list(values))[:, None, None] for values in (mean, std))
    return (image_CHW.cpu() * stds + means).clamp(0, 1)
