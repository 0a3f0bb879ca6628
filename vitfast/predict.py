"""Names what images show: ``python -m vitfast.predict checkpoint=runs/… images=PATH[,PATH…] [key=value …]``.

Paths are image files or folders, searched recursively. A checkpoint that was trained on the packaged digits takes any
grey or colour image: it is made grey and resized to 8 x 8. As in MNIST the stroke must be bright and the ground dark;
invert a photograph of ink on paper first.

A model with exits stops, for each image, at the first one that is sure enough, where its checkpoint has thresholds, and
says which; ``early_exit=false`` runs them all.

Exit code: 0 if every image was predicted; 1 if some could not be read (each is named on stderr, the others are
predicted all the same); 2 after an error that the user can mend.
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

    return run_command(_predict, sys.argv[1:] if argv is None else argv)


def _predict(arguments: Sequence[str]) -> int:
    from vitfast.config import load_options
    from vitfast.evaluation.predictor import PredictOptions, predict_images

    return predict_images(load_options(PredictOptions, list(arguments), "python -m vitfast.predict"))


if __name__ == "__main__":
    sys.exit(main())
