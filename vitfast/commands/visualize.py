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

from vitfast.commands.checkpoint_options import CheckpointOptions
from vitfast.config import load_options, option
from vitfast.evaluation.image_files import find_images, read_batches, report_skipped
from vitfast.evaluation.visualize import choose_view, draw_images, figure_names


@dataclass(kw_only=True)
class VisualizeOptions(CheckpointOptions):
    """Draws the attention of a checkpoint over images."""

    images: str = option(help="image files and folders (searched recursively), separated by commas")
    target: str = option("attention_maps", "folder of the figures, created if missing")
    layer: str = option("rollout", "rollout: through all layers; all: one panel per layer; or a layer number, from 0")
    head: str = option("mean", "mean of all heads, or a head number, from 0 (not with layer=rollout)")
    batch_size: int = option(8, "images in a batch", minimum=1)
    precision: str = option("fp32", "bf16: autocast", choices=["fp32", "bf16"])


def run(arguments: Sequence[str]) -> int:
    """Runs the command, and prints a line for each image, batch by batch; returns the exit code."""
    options = load_options(VisualizeOptions, arguments, "python -m vitfast.visualize")
    paths = find_images(options.images)
    trained = options.load()
    view = choose_view(trained.model, options.layer, options.head)
    names = figure_names(paths, Path(options.target), view.name)
    print(f"{trained.describe()}\n")
    skipped: list[Path] = []
    batches = read_batches(trained, paths, options.batch_size, skipped)
    for path, title, replaced in draw_images(trained, view, names, batches, precision=options.precision):
        print(f"{path}  {title}  {names[path]}{' (replaced)' if replaced else ''}", flush=True)
    return report_skipped(skipped, len(paths))
