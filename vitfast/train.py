"""Trains a model: ``python -m vitfast.train [recipe=NAME] [key=value …]``."""

from vitfast.cli import entry_point

main = entry_point("train")

if __name__ == "__main__":
    raise SystemExit(main())
