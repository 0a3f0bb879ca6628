"""Draws where a model looks in images: ``python -m vitfast.visualize checkpoint=runs/… images=PATH[,PATH…] …``.

Paths are image files or folders, searched recursively. For each the target folder gets a picture: the image as the
model sees it, and beside it the image under the attention that the class token, or what else the head reads, pays to
it: followed through all layers (``layer=rollout``), in one layer (``layer=3``) or in each (``layer=all``). The title is
the predicted class. Of a model with exits the last is shown; what it reuses of
the others is not followed.

Exit code: 0 if every image was drawn; 1 if some could not be read (each is named on stderr, the others are drawn all
the same); 2 after an error that the user can mend.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the verb.

    Args:
        argv: options; None takes the command line's.

    Returns:
        The exit code, see above.
    """
    from vitfast.commands.run_command import run_command

    return run_command(_visualize, sys.argv[1:] if argv is None else argv)


def _visualize(arguments: Sequence[str]) -> int:
    from vitfast.config import load_options
    from vitfast.evaluation.visualizer import VisualizeOptions, visualize_images

    return visualize_images(load_options(VisualizeOptions, list(arguments), "python -m vitfast.visualize"))


if __name__ == "__main__":
    sys.exit(main())
