"""``python -m vitfast``: the same as the command ``vitfast``."""

from vitfast.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
