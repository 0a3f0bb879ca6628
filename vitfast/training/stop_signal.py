"""Stopping on SIGTERM or SIGINT without losing the running step."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
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

    Python handles signals between two bytecodes: not while the main thread waits in C++ for another rank, and a blocked
    read goes on after them. A thread therefore ends the process, without saving, if the flag is not read within
    ``patience_s`` or twice the longest step so far after a signal.

    Attributes:
        number: the first signal received, or None.
        patience_s: shortest time in seconds until an unanswered signal ends the process.
    """

    patience_s = 15.0

    def __init__(self) -> None:
        self.number: int | None = None
        self._interrupted = False
        self._previous: dict[int, Any] = {}
        self._ranks: Ranks | None = None
        self._agreed = False
        self._read_at = time.monotonic()  # when the flag was last read
        self._longest_s = 0.0  # between two reads
        self._is_saving = False
        self._answered = threading.Event()

    def __bool__(self) -> bool:
        now = time.monotonic()
        self._longest_s, self._read_at = max(self._longest_s, now - self._read_at), now
        is_set = self._agreed if self._ranks is not None else self.number is not None
        if is_set:
            self._answered.set()
        return is_set

    def share(self, ranks: Ranks) -> None:
        """Makes all ranks stop at the same step; the first step begins."""
        self._read_at, self._longest_s = time.monotonic(), 0.0
        self._ranks = ranks if ranks.world > 1 else None

    @contextmanager
    def saving(self) -> Iterator[None]:
        """A block that may take as long as it needs: what it writes is what a stop should keep."""
        self._is_saving = True
        try:
            yield
        finally:
            self._read_at, self._is_saving = time.monotonic(), False

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
            self._reader, self._writer = socket.socketpair()
            self._writer.setblocking(False)
            self._previous_wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            self._watcher = threading.Thread(target=self._watch, name="stop signal", daemon=True)
            self._watcher.start()
        return self

    def _watch(self) -> None:
        """Waits for a signal, whose number the system writes to the socket, and then until it is answered."""
        number = 0
        while number not in STOP_SIGNALS:
            received = self._reader.recv(1)
            if not received:  # ``__exit__`` has closed the other end
                return
            number = received[0]
        received_at = time.monotonic()
        while not self._answered.wait(min(self.patience_s, 1.0) / 4):
            silent_s = time.monotonic() - max(received_at, self._read_at)
            if not self._is_saving and silent_s > max(self.patience_s, 2 * self._longest_s):
                for child in multiprocessing.active_children():
                    child.kill()
                reason = f"another process, a file or the device has not responded for {silent_s:.0f} s"
                text = f"{signal.Signals(number).name}: ended without saving, because {reason}"
                # the main thread may hold the lock of sys.stderr
                os.write(2, f"error: {text}; resume from the newest checkpoint\n".encode())
                os._exit(128 + number)

    def __exit__(self, *_: object) -> None:
        self._answered.set()
        if self._previous:
            signal.set_wakeup_fd(self._previous_wakeup)
            self._writer.close()
            self._watcher.join()
            self._reader.close()  # not earlier: Python reports a signal that it cannot write
        for number, handler in self._previous.items():
            # None: the handler was not installed from Python and cannot be restored from here
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()
