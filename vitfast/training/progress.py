"""The progress bar of a run."""

from __future__ import annotations

import os
import sys
from typing import Any

from tqdm import tqdm


def progress_bar(total_images: int | None, done_images: int = 0, *, enabled: bool) -> tqdm[Any]:
    """Creates a bar over all images of a run on stderr: description, images/s, remaining time and postfix.

    Args:
        total_images: images of the whole run; None: not known yet.
        done_images: images processed before a resume.
        enabled: False draws no bar, nor does an stderr that is not a terminal.
    """
    size: dict[str, Any] = {"dynamic_ncols": True}
    if enabled and sys.stderr.isatty():
        terminal = os.get_terminal_size(sys.stderr.fileno())
        if terminal.columns <= 0 or terminal.lines <= 0:  # in containers, under `script`: no bar would be drawn
            size = {"ncols": 100, "nrows": 24}
    return tqdm(
        total=total_images,
        initial=done_images,
        disable=not (enabled and sys.stderr.isatty()),
        unit=" images",
        unit_scale=True,
        leave=False,
        smoothing=0.1,
        bar_format="{desc} {percentage:3.0f} % |{bar}| {rate_fmt}, {remaining} left{postfix}",
        **size,
    )
