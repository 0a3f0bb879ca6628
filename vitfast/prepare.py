"""Brings a data set into the layout that training reads: ``python -m vitfast.prepare source=… target=… [key=value …]``.

Exit code: 0; 2 after an error that the user can mend.
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

    return run_command(_prepare, sys.argv[1:] if argv is None else argv)


def _prepare(arguments: Sequence[str]) -> int:
    from vitfast.config import load_options
    from vitfast.data.resisc45 import PrepareOptions, prepare_resisc45

    options = load_options(PrepareOptions, list(arguments), "python -m vitfast.prepare")
    counts = prepare_resisc45(options)
    print(f"{options.target}: " + ", ".join(f"{count:,} {split}" for split, count in counts.items()) + " images")
    print(f"train on it: python -m vitfast.train data.dataset=file_list data.root={options.target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
