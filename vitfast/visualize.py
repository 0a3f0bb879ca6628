"""Draws where a model looks in images: ``python -m vitfast.visualize checkpoint=runs/… images=PATH[,PATH…] …``."""

import sys

from vitfast.commands.run_command import EntryPoint

main = EntryPoint("visualize")

if __name__ == "__main__":
    sys.exit(main())
