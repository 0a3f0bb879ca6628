"""Writes a model for deployment: ``python -m vitfast.export checkpoint=runs/… path=model.vit``."""

from vitfast.cli import entry_point, make_callable

main = entry_point("export")
make_callable(__name__, "vitfast.inference.export")

if __name__ == "__main__":
    raise SystemExit(main())
