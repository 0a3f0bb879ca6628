"""Trains a model: ``python -m vitfast.train [recipe=NAME] [key=value …]``.

Without arguments it learns handwritten digits from images that come with the package, in about a minute on two cores.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the verb.

    Args:
        argv: options; None takes the command line's.

    Returns:
        The exit code: 0; 2 after an error that the user can mend; 143 or 130 after SIGTERM or SIGINT, with all work
        saved.
    """
    from vitfast.commands.run_command import run_command
    from vitfast.training.training_run import run_training

    return run_command(run_training, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
