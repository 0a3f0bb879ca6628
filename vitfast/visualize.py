"""Draws where a model looks in images: ``python -m vitfast.visualize checkpoint=runs/… images=PATH[,PATH…] …``."""

from vitfast.cli import entry_point

main = entry_point("visualize")

if __name__ == "__main__":
    raise SystemExit(main())
