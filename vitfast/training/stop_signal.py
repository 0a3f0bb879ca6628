"""Stopping on SIGTERM or SIGINT without losing the work of the running step."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """A context in which SIGTERM and SIGINT only set a flag, which the training loop reads between two steps.

    The second SIGINT (a second Ctrl+C) raises ``KeyboardInterrupt`` at once, for whoever does not want to wait. On
    leaving, the handlers that were there before are put back. Outside the main thread, where Python allows no handlers,
    the flag can still be set with ``request``.

    Attributes:
        number: the signal that came, or None.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._interrupted = False
        self._previous: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.number is not None

    @property
    def name(self) -> str:
        """``"SIGTERM"`` or ``"SIGINT"``; empty while none has come."""
        return signal.Signals(self.number).name if self.number is not None else ""

    @property
    def exit_code(self) -> int:
        """What a shell reports for a process that ended by the signal: 143 for SIGTERM, 130 for SIGINT; else 0."""
        return 128 + self.number if self.number is not None else 0

    def request(self, number: int = signal.SIGTERM) -> None:
        """Asks for a stop as if the signal had come; the first request counts."""
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            # None: the handler was not installed from Python and cannot be put back from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()
