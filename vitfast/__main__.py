"""``python -m vitfast``: the same as the command ``vitfast``."""

from __future__ import annotations

import sys

from vitfast.cli import main

if __name__ == "__main__":
    sys.exit(main())
