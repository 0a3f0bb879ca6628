"""Finds similar images: ``python -m vitfast.search index=FOLDER [image=PATH[,PATH…]]``."""

from vitfast.cli import entry_point

main = entry_point("search")

if __name__ == "__main__":
    raise SystemExit(main())
