"""Names what images show: ``python -m vitfast.predict checkpoint=runs/… images=PATH[,PATH…] [key=value …]``."""

from vitfast.cli import entry_point

main = entry_point("predict")

if __name__ == "__main__":
    raise SystemExit(main())
