"""Writing a picture of matplotlib."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a figure as a PNG file, as a whole or not at all.

    Raises:
        OSError: it cannot be written. What was there before is intact.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.writing")
    try:
        figure.savefig(temporary, format="png")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
