"""Stopping on SIGTERM or SIGINT without losing the running step."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from vitfast.training.distributed import Ranks

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """A context in which SIGTERM and SIGINT set a flag that the training loop reads between two steps.

    The second SIGINT (Ctrl+C) raises ``KeyboardInterrupt``. On exit the previous handlers are restored. Outside the
    main thread, where Python allows no handlers, the flag can be set with ``request``.

    A signal may reach only one of several ranks, or the ranks at different steps. If each rank acted on its own signal,
    the others would wait for it forever. After ``share``, the flag is therefore what the ranks last agreed on.

    Attributes:
        number: the first signal received, or None.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._interrupted = False
        self._previous: dict[int, Any] = {}
        self._ranks: Ranks | None = None
        self._agreed = False

    def __bool__(self) -> bool:
        return self._agreed if self._ranks is not None else self.number is not None

    def share(self, ranks: Ranks) -> None:
        """Makes all ranks stop at the same step."""
        self._ranks = ranks if ranks.world > 1 else None

    def set_agreed(self, largest_number: float) -> None:
        """Sets the flag if the largest ``number`` of all ranks, 0 without a signal, is a signal."""
        if largest_number:
            self.request(int(largest_number))
            self._agreed = True

    def agree(self) -> bool:
        """Returns whether any rank has received a signal; a collective operation."""
        if self._ranks is not None:
            self.set_agreed(self._ranks.largest(self.number or 0)[0])
        return bool(self)

    @property
    def name(self) -> str:
        """``"SIGTERM"`` or ``"SIGINT"``; empty without a signal."""
        return signal.Signals(self.number).name if self.number is not None else ""

    @property
    def exit_code(self) -> int:
        """The exit code that a shell reports for the signal: 143 for SIGTERM, 130 for SIGINT; 0 without a signal."""
        return 128 + self.number if self.number is not None else 0

    def request(self, number: int = signal.SIGTERM) -> None:
        """Requests a stop as if the signal had been received; only the first request counts."""
        if self.number is None:
            self.number = int(number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted:
            raise KeyboardInterrupt
        self._interrupted |= number == signal.SIGINT
        self.request(number)

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            # None: the handler was not installed from Python and cannot be restored from here
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()
