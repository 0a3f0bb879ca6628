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

from pathlib import Path

from vitfast.commands.command_options import VisualizeOptions
from vitfast.data.collection import list_images
from vitfast.evaluation.image_files import read_batches, report_skipped
from vitfast.evaluation.visualize import choose_view, draw_images, figure_names


def run(options: VisualizeOptions) -> int:
    """Runs the command, and prints a line for each image, batch by batch; returns the exit code."""
    images = list(list_images(options.images))
    trained = options.load()
    view = choose_view(trained.model, options.layer, options.head)
    names = figure_names([Path(image.path) for image in images], Path(options.target), view.name)
    print(f"{trained.describe()}\n")
    skipped: list[Path] = []
    batches = read_batches(trained, images, options.batch_size, skipped)
    for path, title, replaced in draw_images(trained, view, names, batches, precision=options.precision):
        print(f"{path}  {title}  {names[path]}{' (replaced)' if replaced else ''}", flush=True)
    return report_skipped(skipped, len(images))
