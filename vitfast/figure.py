"""Creating and saving matplotlib figures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vitfast.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float, *, dpi: int = 120, layout: Literal["constrained"] | None = None) -> Figure:
    """Returns an empty figure, ``width`` by ``height`` inches, that can be saved as PNG."""
    # Not pyplot: it would keep a global state and choose a backend.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a figure as a PNG file atomically.

    Raises:
        OSError: the file cannot be written. An existing file stays intact.
    """
    with atomic_file(Path(path)) as temporary:
        figure.savefig(temporary, format="png")
