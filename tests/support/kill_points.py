"""Kills ``python -m vitfast.embed`` by SIGKILL at chosen points of its work, then lets it finish.

    python -m support.kill_points OPTION...

Each attempt is a fork of this process, which has imported everything and run nothing. Prints the points.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import pyarrow.parquet  # noqa: F401  # imported here once, where the command would in every fork
import timm  # noqa: F401

from vitfast import embed, files
from vitfast.evaluation import row_functions, shards

# (owner, function, call): the process dies before that call; flush_to_disk is called with the temporary file, then,
# after the rename, with the folder
POINTS = (
    (files, "flush_to_disk", 1),  # the record is written, not renamed
    (row_functions.Embedder, "compute", 2),  # amid the first shard
    (files, "flush_to_disk", 3),  # the first shard is written, not renamed
    (files, "flush_to_disk", 2),  # it is renamed, its folder not flushed
    (shards.ShardFolder, "_write_parquet", 2),  # before the third shard exists
)


def main(*options: str) -> None:
    """Runs the command until it ends by itself."""
    for owner, name, call in POINTS:
        status = _run(options, owner, name, call)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            raise SystemExit(f"{name} {call}: status {status}")
        print(f"killed before call {call} of {name}", flush=True)
    raise SystemExit(os.waitstatus_to_exitcode(_run(options, None, "", 0)))


def _run(options: tuple[str, ...], owner: Any, name: str, call: int) -> int:
    process = os.fork()
    if process == 0:
        if owner is not None:
            _die_before(owner, name, call)
        os._exit(embed.main(list(options)))
    return os.waitpid(process, 0)[1]


def _die_before(owner: Any, name: str, call: int) -> None:
    original, calls = getattr(owner, name), 0

    def counted(*arguments: Any, **values: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **values)

    setattr(owner, name, counted)


if __name__ == "__main__":
    main(*sys.argv[1:])
