"""Training runs in separate processes without importing torch in each.

A server imports everything, computes nothing, and forks a process for each run; that one leads a session of its own, so
that whatever it leaves behind is found.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import vitfast.train
from support.interruption import Interruption
from support.subprocesses import LIMIT_S, free_port, python_environment


class ForkedRun:
    """A run of ``vitfast.train`` in a process that a server has forked.

    Attributes:
        pid: of the process, and the number of its session and process group.
        output: file with what it has written to stdout and stderr.
    """

    def __init__(self, server: TrainingServer, pid: int, output: Path) -> None:
        self.pid, self.output = pid, output
        self._server = server
        self._handle = os.pidfd_open(pid)

    def wait(self) -> int:
        """Returns the exit code, negative after death by a signal; a process that does not end fails the test."""
        if not self.has_ended(LIMIT_S):
            os.killpg(self.pid, signal.SIGKILL)
            raise AssertionError(f"the process did not end within {LIMIT_S} s:\n{self.output.read_text()}")
        os.close(self._handle)
        return os.waitstatus_to_exitcode(int(self._server.ask({"wait": self.pid})))

    def has_ended(self, timeout_s: float) -> bool:
        """Waits for the end, but not longer than that."""
        poll = select.poll()
        poll.register(self._handle, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    def living_processes(self) -> list[int]:
        """Which processes of its session still run."""
        return living_processes(self.pid)


class TrainingServer:
    """The process that forks; a context, on leaving which it ends."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.training_server"],
            env=python_environment(OMP_NUM_THREADS="1"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(
        self, output: Path, arguments: Sequence[str], *interruptions: Interruption, **environment: str
    ) -> ForkedRun:
        """Starts ``vitfast.train`` with these arguments, and with these changes of the environment."""
        request = {
            "arguments": list(arguments),
            "output": str(output),
            "interruptions": [asdict(interruption) for interruption in interruptions],
            "environment": environment,
        }
        return ForkedRun(self, int(self.ask(request)), output)

    def start_ranks(
        self, output: Path, arguments: Sequence[str], *interruptions: tuple[Interruption, ...], world: int = 2
    ) -> list[ForkedRun]:
        """Starts ``vitfast.train`` as torchrun would: ``world`` processes that find each other.

        ``interruptions`` are those of each rank; ``output`` gets the rank as its suffix.
        """
        together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(world)}
        runs = []
        for rank in range(world):
            own = interruptions[rank] if rank < len(interruptions) else ()
            file = output.with_suffix(f".{rank}")
            runs.append(self.start(file, arguments, *own, RANK=str(rank), LOCAL_RANK=str(rank), **together))
        return runs

    def run(self, output: Path, arguments: Sequence[str], *interruptions: Interruption) -> int:
        """Starts ``vitfast.train`` and waits for its exit code."""
        return self.start(output, arguments, *interruptions).wait()

    def ask(self, request: dict[str, object]) -> str:
        """Sends a request and returns the answer, a line."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()

    def __enter__(self) -> TrainingServer:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(LIMIT_S)


def living_processes(session: int) -> list[int]:
    """Returns the processes of a session that still run; those that only wait to be reaped do not."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except (OSError, IndexError):
            continue
        state, its_session = fields[0], int(fields[3])
        if its_session == session and state != "Z":
            found.append(int(folder.name))
    return found


def _run(request: dict[str, Any]) -> NoReturn:
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    file = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor, source in ((0, nothing), (1, file), (2, file)):
        os.dup2(source, descriptor)
    code = 1
    os.environ.update(request["environment"])
    try:
        for interruption in request["interruptions"]:
            Interruption(**interruption).install()
        code = vitfast.train.main(request["arguments"])
    except BaseException:
        traceback.print_exc()
    finally:
        # An ordinary exit would also take apart all of torch, for longer than the run takes.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve() -> None:
    # What every run imports sooner or later.
    for module in ("vitfast.api", "vitfast.training.training_run", "matplotlib.backends.backend_agg"):
        importlib.import_module(module)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            print(os.waitpid(request["wait"], 0)[1], flush=True)
            continue
        child = os.fork()
        if child == 0:
            _run(request)
        print(child, flush=True)


if __name__ == "__main__":
    _serve()
    os._exit(0)  # see _run
