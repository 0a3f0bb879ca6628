"""The progress bar of a run."""

from __future__ import annotations

import os
import sys
from types import TracebackType
from typing import Any

from tqdm import tqdm


class Progress:
    """A bar over all images of a run on stderr: epoch, loss, top-1, images/s and remaining time.

    Without a terminal the bar is disabled, and only ``write`` prints.

    Args:
        total_images: images of the whole run.
        done_images: images processed before a resume.
        enabled: False disables the bar; None enables it if stderr is a terminal.
    """

    def __init__(self, total_images: int, done_images: int = 0, enabled: bool | None = None) -> None:
        self._bar = tqdm(
            total=total_images,
            initial=done_images,
            disable=not (sys.stderr.isatty() if enabled is None else enabled),
            unit=" images",
            unit_scale=True,
            **_size(),
            leave=False,
            smoothing=0.1,
            bar_format="{desc} {percentage:3.0f} % |{bar}| {rate_fmt}, {remaining} left{postfix}",
        )

    @property
    def enabled(self) -> bool:
        """Whether a bar is drawn."""
        return not self._bar.disable

    def phase(self, text: str) -> None:
        """Sets the text before the bar, e.g. ``"epoch 3/60"``."""
        self._bar.set_description_str(text, refresh=False)

    def advance(self, images: int) -> None:
        """Advances the bar."""
        self._bar.update(images)

    def show(self, loss: float, top1: float) -> None:
        """Sets the metrics after the bar."""
        self._bar.set_postfix_str(f"loss {loss:.3f}, top-1 {top1:.1%}", refresh=False)

    def write(self, line: str) -> None:
        """Prints a line on stderr above the bar."""
        if self._bar.disable:
            print(line, file=sys.stderr, flush=True)
        else:
            tqdm.write(line, file=sys.stderr)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()


def _size() -> dict[str, Any]:
    """Follows the size of the terminal; some (in containers, under ``script``) report 0 x 0, which draws no bar."""
    try:
        size = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError):
        size = os.terminal_size((0, 0))
    return {"dynamic_ncols": True} if size.columns > 0 and size.lines > 0 else {"ncols": 100, "nrows": 24}
