"""Measures a checkpoint: ``python -m vitfast.evaluate checkpoint=runs/… [split=test] [key=value …]``."""

from vitfast.cli import entry_point

main = entry_point("evaluate")

if __name__ == "__main__":
    raise SystemExit(main())
