"""``vitfast visualize``: draws attention maps over images.

Paths are image files or folders, searched recursively. For each image, the target folder gets a figure: the image as
the model sees it, next to the image overlaid with the attention that the class token, or the tokens that the head
reads, pays to it: through all layers (``layer=rollout``), in one layer (``layer=3``) or in each (``layer=all``). The
title is the predicted class. For a model with exits the last exit is shown; features reused from earlier exits are not
traced.

Exit code: 0 if every image was drawn; 1 if some could not be read (each is named on stderr, the others are still
drawn); 2 after a user error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vitfast.config import load_options, option
from vitfast.device import select_device
from vitfast.evaluation.image_files import SkippedImages, find_images
from vitfast.evaluation.visualize import choose_view, draw_images, figure_names
from vitfast.runs.trained_model import WEIGHTS, load_trained_model


@dataclass
class VisualizeOptions:
    """Draws the attention of a checkpoint over images."""

    checkpoint: str = option(help="folder of a run (its newest checkpoint) or of a checkpoint")
    images: str = option(help="image files and folders (searched recursively), separated by commas")
    target: str = option("attention_maps", "folder of the figures, created if missing")
    layer: str = option("rollout", "rollout: through all layers; all: one panel per layer; or a layer number, from 0")
    head: str = option("mean", "mean of all heads, or a head number, from 0 (not with layer=rollout)")
    weights: str = option("auto", "auto: averaged weights (EMA) if available", choices=list(WEIGHTS))
    batch_size: int = option(8, "images in a batch", minimum=1)
    precision: str = option("fp32", "bf16: autocast", choices=["fp32", "bf16"])
    device: str = option("auto", "auto: the GPU if there is one", choices=["auto", "cpu", "cuda"])
    threads: int | None = option(None, "CPU threads; null: torch's choice", minimum=1)


def run(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    return visualize_images(load_options(VisualizeOptions, list(arguments), "python -m vitfast.visualize"))


def visualize_images(options: VisualizeOptions) -> int:
    """Draws a figure for each image and prints a line for each on stdout, batch by batch.

    An unreadable image is reported on stderr, and the others are still drawn.

    Returns:
        The exit code: 0, or 1 if at least one image could not be read.

    Raises:
        UserError: if there is no valid checkpoint, its model has no attention maps, no image is found, layer or head
            do not exist, or a figure cannot be written.
    """
    paths = find_images(options.images)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = select_device(options.device)
    trained = load_trained_model(options.checkpoint, weights=options.weights, device=device)
    view = choose_view(trained.model, options.layer, options.head)
    names = figure_names(paths, Path(options.target), view.name)
    print(f"{trained.describe()}\n")
    skipped = SkippedImages()
    drawn = draw_images(
        trained, view, names, device, skipped, batch_size=options.batch_size, precision=options.precision
    )
    for path, title, replaced in drawn:
        print(f"{path}  {title}  {names[path]}{' (replaced)' if replaced else ''}", flush=True)
    return skipped.conclude(len(paths))
