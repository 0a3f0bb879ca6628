"""Calibrates the exits of a checkpoint: ``python -m vitfast.exits checkpoint=runs/… budget_gmacs=1.0 …``."""

from vitfast.cli import entry_point

main = entry_point("exits")

if __name__ == "__main__":
    raise SystemExit(main())
