"""A run that is killed repeatedly ends like an uninterrupted one."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from support.run_content import content, differences
from support.subprocesses import LIMIT_S
from support.tiny_run import RICH, TINY_RUN
from support.training_server import ForkedRun, TrainingServer
from vitfast.weights.checkpoint import list_checkpoints

KILLS = 20
SAVING = ("train.checkpoint_every_epochs=1", "train.keep_checkpoints=1")
OPTIONS = (*TINY_RUN, *RICH, *SAVING, "schedule.epochs=12", "train.threads=1")


def wait_for_orphans(run: ForkedRun) -> None:
    """Workers notice by themselves that the training process is gone."""
    deadline = time.monotonic() + LIMIT_S
    while run.living_processes():
        assert time.monotonic() < deadline, f"workers outlive the training process: {run.living_processes()}"
        time.sleep(0.05)


def start(server: TrainingServer, folder: Path, workers: int) -> ForkedRun:
    """Resumes the run, or starts it if it was killed before its first checkpoint."""
    run_dir = folder / "run"
    if list_checkpoints(run_dir):
        return server.start(folder / "output", [f"train.resume={run_dir}", f"data.workers={workers}"])
    shutil.rmtree(run_dir, ignore_errors=True)
    return server.start(folder / "output", [*OPTIONS, f"run_dir={run_dir}", f"data.workers={workers}"])


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path, training_server):
    run_dir, begin = tmp_path / "run", time.monotonic()
    assert training_server.run(tmp_path / "output", [*OPTIONS, f"run_dir={tmp_path / 'undisturbed'}"]) == 0
    duration_s = time.monotonic() - begin
    undisturbed = content(tmp_path / "undisturbed")

    chance, kills = random.Random(0), 0
    while kills < KILLS:
        run = start(training_server, tmp_path, workers=2 * (kills % 2))
        # Together about as long as the run takes: the later kills find it far advanced.
        run.has_ended(chance.uniform(0, 2 * duration_s / KILLS))
        os.kill(run.pid, signal.SIGKILL)  # a process that has ended waits for its parent, and does not mind
        code = run.wait()
        wait_for_orphans(run)
        if code == 0:
            # On a machine that is faster than it was: the kills go on with another run.
            assert differences(undisturbed, content(run_dir)) == []
            shutil.rmtree(run_dir)
        else:
            assert code == -signal.SIGKILL, run.output.read_text()
            kills += 1

    run = start(training_server, tmp_path, workers=0)
    assert run.wait() == 0, run.output.read_text()
    assert differences(undisturbed, content(run_dir)) == []
    assert not list(run_dir.glob(".checkpoint*"))
