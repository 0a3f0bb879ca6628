"""Signals to a training process: it saves, returns its exit code, leaves no child process, and resumes bit-exactly."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from support.interruption import Interruption
from support.run_content import content, differences
from support.slow import slow
from support.subprocesses import LIMIT_S, python_environment
from support.tiny_run import RICH, TINY_RUN
from support.training_server import living_processes
from vitfast.weights.checkpoint import list_checkpoints, load_state

OPTIONS = (*TINY_RUN, *RICH, "train.threads=1")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, training_server):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert training_server.run(folder / "output", [*OPTIONS, f"run_dir={folder / 'run'}"]) == 0
    return content(folder / "run")


@pytest.fixture
def interrupted(tmp_path, training_server, undisturbed):
    """Runs with interruptions; checks the exit code; resumes; compares with the undisturbed run."""

    def check(first: Interruption, *more: Interruption, options: tuple[str, ...] = (), step: int | None = None):
        run_dir = tmp_path / "run"
        run = training_server.start(tmp_path / "output", [*OPTIONS, *options, f"run_dir={run_dir}"], first, *more)
        assert run.wait() == 128 + first.number, run.output.read_text()
        assert run.living_processes() == []
        output = run.output.read_text()
        assert "Traceback" not in output
        assert f"stopped by {signal.Signals(first.number).name}" in output
        assert "everything is saved. Resume with:" in output
        if step is not None:
            assert list_checkpoints(run_dir)[0].name == f"checkpoint_{step:06d}"
        resumed = training_server.start(tmp_path / "resumed", [f"train.resume={run_dir}"])
        assert resumed.wait() == 0, resumed.output.read_text()
        assert differences(undisturbed, content(run_dir)) == []
        assert not list(run_dir.glob(".*"))

    return check


@pytest.mark.parametrize("times", [*slow([1]), 2])
def test_in_the_middle_of_an_epoch(interrupted, times):
    interrupted(Interruption("step", 3, times=times), step=3)


def test_ctrl_c(interrupted):
    interrupted(Interruption("step", 3, number=signal.SIGINT, to_group=True), step=3)


@pytest.mark.parametrize(("batch", "step"), [*slow([(1, 6)]), (3, 12)])
def test_during_the_evaluation(interrupted, batch, step):
    """The validation after the first epoch, and the first of two batches of the test at the end."""
    interrupted(Interruption("evaluation", batch), step=step)


@pytest.mark.parametrize("flush", [*slow([1, 2, 3, 4, 5]), 6])
def test_while_a_checkpoint_is_saved(interrupted, flush):
    """Four files, the folder, and the run's folder after the renaming: six flushes."""
    interrupted(Interruption("save", flush), step=6)


def test_again_while_the_checkpoint_of_the_first_one_is_saved(interrupted):
    interrupted(Interruption("step", 2), Interruption("save", 3), step=2)


def test_second_ctrl_c_while_saving(tmp_path, training_server, undisturbed):
    """The second Ctrl+C, in the middle of saving: the checkpoint before is used."""
    run_dir, interrupt = tmp_path / "run", Interruption("step", 9, number=signal.SIGINT)
    again = Interruption("save", 6 + 3, number=signal.SIGINT)  # in the second checkpoint
    assert training_server.run(tmp_path / "output", [*OPTIONS, f"run_dir={run_dir}"], interrupt, again) == 130
    assert "interrupted" in (tmp_path / "output").read_text()
    assert list_checkpoints(run_dir) == [run_dir / "checkpoint_000006"]
    assert training_server.run(tmp_path / "resumed", [f"train.resume={run_dir}"]) == 0
    assert differences(undisturbed, content(run_dir)) == []
    assert not list(run_dir.glob(".*"))


@pytest.mark.parametrize("to_group", [*slow([False]), True])
def test_with_workers(interrupted, to_group):
    interrupted(Interruption("step", 2, to_group=to_group), options=("data.workers=2",), step=2)


def test_to_the_group_while_the_workers_start(interrupted):
    interrupted(Interruption("worker", to_group=True), options=("data.workers=2",))


@pytest.mark.slow
def test_from_outside(tmp_path, training_server):
    """As a batch system does it: the command line itself, and a signal whenever it comes."""
    # long enough that the signal finds it at work
    options = [*TINY_RUN, "schedule.epochs=4", "data.batch_size=64", "optim.ema_decay=0.9", "train.threads=1"]
    more = ["data.workers=2", "train.log_every=1"]
    run_dir, output = tmp_path / "run", tmp_path / "output"
    with open(output, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "vitfast.train", *options, *more, f"run_dir={run_dir}"],
            env=python_environment(OMP_NUM_THREADS="1"),
            stderr=file,
            start_new_session=True,
        )
    while not (run_dir / "log.txt").exists() or "step 3:" not in (run_dir / "log.txt").read_text():
        assert process.poll() is None, output.read_text()
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(LIMIT_S) == 143, output.read_text()
    shown = output.read_text()
    assert "stopped by SIGTERM" in shown
    assert "Traceback" not in shown
    command = next(line.strip() for line in shown.splitlines() if "train.resume=" in line)
    assert shlex.split(command)[1:] == ["-m", "vitfast.train", f"train.resume={run_dir}"]
    assert living_processes(process.pid) == []
    assert 3 <= load_state(list_checkpoints(run_dir)[0])["step"] < 4 * 21
    for arguments in ([f"train.resume={run_dir}", "data.workers=0"], [*options, f"run_dir={tmp_path / 'undisturbed'}"]):
        assert training_server.run(tmp_path / "other", arguments) == 0, (tmp_path / "other").read_text()
    assert differences(content(tmp_path / "undisturbed"), content(run_dir)) == []
