"""Calibrates the exits of a checkpoint: ``python -m vitfast.exits checkpoint=runs/… budget_gmacs=1.0 [key=value …]``.

Measures what every exit knows on a held-out split, prints accuracy and cost for 59 choices of thresholds, finds the
most accurate ones for the budget (``budget_gmacs`` or ``budget_ms``, mean of an image) and writes them into the
checkpoint's manifest. Without a budget it only prints.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the verb.

    Args:
        argv: options; None takes the command line's.

    Returns:
        The exit code: 0, or 2 after an error that the user can mend.
    """
    from vitfast.commands.run_command import run_command

    return run_command(_exits, sys.argv[1:] if argv is None else argv)


def _exits(arguments: Sequence[str]) -> int:
    from vitfast.config import load_options
    from vitfast.evaluation.exit_calibration import ExitsOptions, calibrate_checkpoint

    print(calibrate_checkpoint(load_options(ExitsOptions, list(arguments), "python -m vitfast.exits")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
