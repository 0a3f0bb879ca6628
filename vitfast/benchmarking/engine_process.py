"""Runs an engine in a process of its own, which stands still while others are timed."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitfast.benchmarking.engines import Engine
from vitfast.benchmarking.peers import Unavailable, failure

# an untimed run comes first if it takes less, since other engines have run on these caches
_MAX_UNTIMED_S = 0.1
# for the exit of a process, before it is killed
_END_S = 10.0


class EngineProcess:
    """An engine that has run a batch once, in a new process.

    The process is stopped by a signal whenever it is not asked for anything, so that threads that wait for work in a
    loop take no time from other engines.

    Args:
        engine: a configuration of ``ENGINES``, or another function of its type that can be pickled.
        file: what ``torch.save`` wrote: a tuple of model and images.
        precision: of the engine.
        folder: for files that configurations of an engine share.

    Attributes:
        logits: its first result.

    Raises:
        Unavailable: the engine cannot run the model; the message says why.
    """

    def __init__(self, engine: Engine, file: Path, precision: str, folder: Path) -> None:
        context = get_context("spawn")
        self._connection, other = context.Pipe()
        arguments = (other, engine, file, precision, folder, torch.get_num_threads())
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        other.close()
        try:
            answer = self._receive()
        except EOFError:
            answer = "failed: its process ended"
        if isinstance(answer, str):
            self.close()
            raise Unavailable(answer)
        self.logits: Tensor = torch.from_numpy(answer)

    def time(self, repeats: int) -> list[float]:
        """Runs the batch ``repeats`` times; returns the seconds of each run."""
        self._send_signal(signal.SIGCONT)
        self._connection.send(repeats)
        durations_s: list[float] = self._receive()
        return durations_s

    def close(self) -> None:
        """Ends the process, which removes what its engine has created."""
        if self._process.is_alive():
            self._send_signal(signal.SIGCONT)
            with suppress(OSError):
                self._connection.send(0)
            self._process.join(_END_S)
        self._process.kill()
        self._process.join()
        self._connection.close()

    def _receive(self) -> Any:
        answer = self._connection.recv()
        self._send_signal(signal.SIGSTOP)
        return answer

    def _send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)


def _serve(connection: Connection, engine: Engine, file: Path, precision: str, folder: Path, threads: int) -> None:
    """Sends the first result, or why there is none; then, for each number of runs, their seconds."""
    silence = os.open(os.devnull, os.O_WRONLY)  # engines print progress and warnings
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    torch.set_num_threads(threads)
    try:
        model, images = torch.load(file, weights_only=False)
        run = engine(model, images, precision, folder)
        logits = run().float().numpy()
    except Exception as error:
        connection.send(failure(error))
        return
    connection.send(logits)
    last_s = _time(run)
    while repeats := connection.recv():
        if last_s < _MAX_UNTIMED_S:
            run()
        samples = [_time(run) for _ in range(repeats)]
        last_s = samples[-1]
        connection.send(samples)


def _time(run: Any) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
