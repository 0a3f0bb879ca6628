"""Converts a data set for training: ``python -m vitfast.prepare source=… target=… [key=value …]``."""

from vitfast.cli import entry_point

main = entry_point("prepare")

if __name__ == "__main__":
    raise SystemExit(main())
