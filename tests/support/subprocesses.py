"""Runs Python in a new process with clean imports and environment."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import vitfast

TESTS = Path(__file__).parent.parent
# only a process that hangs takes longer
LIMIT_S = 900


def free_port() -> str:
    """Returns a TCP port of this machine that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def python_environment(**changes: str) -> dict[str, str]:
    """Returns the environment in which this vitfast and the support kit are importable."""
    path = os.pathsep.join([str(Path(vitfast.__file__).parent.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), **changes}


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs ``python *arguments`` with this vitfast and the support kit importable; output is captured as text."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=python_environment(**environment),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
