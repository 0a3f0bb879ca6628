"""Embeds a collection of images: ``python -m vitfast.embed checkpoint=runs/… images=PATH[,PATH…] output=FOLDER``."""

from vitfast.cli import entry_point

main = entry_point("embed")

if __name__ == "__main__":
    raise SystemExit(main())
