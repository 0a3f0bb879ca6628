"""Measures a checkpoint: ``python -m vitfast.evaluate checkpoint=runs/… [split=test] [key=value …]``.

Prints top-1, top-5, calibration error, images/s and a table by class; ``output=json`` prints the same for programs.
With ``exits=sweep``, for a model with exits, it prints and draws accuracy against images/s and cost instead.
``accelerate=int8`` measures the model as ``vitfast.accelerate`` runs it on this CPU, and how often both agree.
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

    return run_command(_evaluate, sys.argv[1:] if argv is None else argv)


def _evaluate(arguments: Sequence[str]) -> int:
    from vitfast.benchmarking.exit_sweep_run import sweep_exits
    from vitfast.config import load_options
    from vitfast.evaluation.evaluation_report import EvaluateOptions, evaluate_checkpoint

    options = load_options(EvaluateOptions, list(arguments), "python -m vitfast.evaluate")
    print(sweep_exits(options) if options.exits == "sweep" else evaluate_checkpoint(options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
