"""Measures a checkpoint: ``python -m vitfast.evaluate checkpoint=runs/… [split=test] [key=value …]``."""

import sys

from vitfast.commands.run_command import EntryPoint

main = EntryPoint("evaluate")

if __name__ == "__main__":
    sys.exit(main())
