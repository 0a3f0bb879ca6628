"""Calibrates the exits of a checkpoint: ``python -m vitfast.exits checkpoint=runs/… budget_gmacs=1.0 …``."""

import sys

from vitfast.commands.run_command import EntryPoint

main = EntryPoint("exits")

if __name__ == "__main__":
    sys.exit(main())
