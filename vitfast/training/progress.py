"""The progress bar of a run."""

from __future__ import annotations

import os
import sys
from types import TracebackType
from typing import Any

from tqdm import tqdm


class Progress:
    """A bar over all images of a run on stderr: epoch, loss, top-1, images/s and time left.

    Where stderr is no terminal the bar is silent, and only what goes through ``write`` appears.

    Args:
        total_images: images of the whole run.
        done_images: images that an interrupted run had done.
        enabled: False keeps it silent on a terminal too; None decides by stderr.
    """

    def __init__(self, total_images: int, done_images: int = 0, enabled: bool | None = None) -> None:
        disable = not (sys.stderr.isatty() if enabled is None else enabled)
        self._bar = tqdm(
            total=total_images,
            initial=done_images,
            disable=disable,
            unit=" images",
            unit_scale=True,
            **_shape(),
            leave=False,
            smoothing=0.1,
            bar_format="{desc} {percentage:3.0f} % |{bar}| {rate_fmt}, {remaining} left{postfix}",
        )

    @property
    def enabled(self) -> bool:
        """Whether anything is drawn."""
        return not self._bar.disable

    def phase(self, text: str) -> None:
        """Sets what stands in front of the bar, e.g. ``"epoch 3/60"``."""
        self._bar.set_description_str(text, refresh=False)

    def advance(self, images: int) -> None:
        """Moves the bar."""
        self._bar.update(images)

    def show(self, loss: float, top1: float) -> None:
        """Sets the figures behind the bar."""
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


def _shape() -> dict[str, Any]:
    """Follows the terminal's size; some terminals (in containers, under ``script``) say 0 x 0 and would get no bar."""
    try:
        size = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError):
        size = os.terminal_size((0, 0))
    return {"dynamic_ncols": True} if size.columns > 0 and size.lines > 0 else {"ncols": 100, "nrows": 24}
