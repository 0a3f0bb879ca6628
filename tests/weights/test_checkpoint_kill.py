"""Killed while saving: the newest valid checkpoint is the previous or the new one, complete in both cases."""

from __future__ import annotations

import json
import textwrap

import pytest

from support.checkpoints import newest_value, save
from support.failing_calls import build_failing_calls
from support.subprocesses import run_python
from vitfast.weights.checkpoint import verify_checkpoint

# Imports torch once; then each trial is a fork that saves for ever, every step twice, and is killed. The number of the
# save is what the checkpoint holds, and what the fork reports before and after it.
RANDOM_MOMENTS = """
    import itertools, os, random, signal, struct, sys, time
    from pathlib import Path
    import torch
    from support.checkpoints import weights
    from vitfast.weights.checkpoint import prune_checkpoints, save_checkpoint

    torch.set_num_threads(1)
    chance = random.Random(0)

    def save_for_ever(run_dir, report):
        for number in itertools.count(1):
            step = (number + 1) // 2
            model = {**weights(number), **{f"w{i}": torch.full((64, 64), float(number)) for i in range(8)}}
            moments = {i: {"step": number, "exp_avg": torch.full((64, 64), float(number))} for i in range(8)}
            content = {"model": model, "ema": model, "state": {"optimizer": moments}, "manifest": {"epoch": step}}
            save_checkpoint(run_dir, step=step, **content)
            prune_checkpoints(run_dir, keep=2, best_step=1, step=step)
            os.pwrite(report, struct.pack("q", number), 0)

    for trial in range(int(sys.argv[2])):
        run_dir = Path(sys.argv[1]) / str(trial)
        run_dir.mkdir()
        report = os.open(run_dir / "saved", os.O_RDWR | os.O_CREAT)
        child = os.fork()
        if child == 0:
            save_for_ever(run_dir, report)
        while not os.pread(report, 8, 0):
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.2))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(report)
"""


@pytest.mark.parametrize("trials", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_at_random_moments(tmp_path, trials):
    finished = run_python("-c", textwrap.dedent(RANDOM_MOMENTS), str(tmp_path), str(trials), OMP_NUM_THREADS="1")
    assert finished.returncode == 0, finished.stderr
    in_the_middle = 0
    for trial in range(trials):
        run_dir = tmp_path / str(trial)
        reported = int.from_bytes((run_dir / "saved").read_bytes(), "little")
        number = newest_value(run_dir)
        assert reported <= number <= reported + 1
        assert verify_checkpoint(run_dir / "checkpoint_000001")["epoch"] == 1  # the best one, which stays
        litter = [path.name for path in run_dir.glob(".*")]
        assert len(litter) <= 2, litter  # one that was replaced, deleted or written, and what took its place
        in_the_middle += bool(litter)
        save(run_dir, (int(number) + 1) // 2, content=number + 1)
        assert newest_value(run_dir) == number + 1
        assert not list(run_dir.glob(".*"))
    assert in_the_middle >= trials // 5, "the kills did not come while it saved"


# Nothing changes on the disk between two calls of the system: killing before each of them is every moment there is.
EVERY_CALL = """
    import json, os, shutil, sys
    from pathlib import Path
    from support.checkpoints import newest_value, save
    from support.failing_calls import CHANGES, FailingCalls
    from vitfast.weights.checkpoint import prune_checkpoints

    folder, calls, trials, number = Path(sys.argv[1]), FailingCalls(), [], 1
    before, run_dir = folder / "before", folder / "run"
    before.mkdir()
    save(before, 1)
    save(before, 2)
    while not trials or trials[-1][0]:
        shutil.copytree(before, run_dir)
        child = os.fork()
        if child == 0:
            with calls.fail(run_dir, CHANGES, number, 0):
                save(run_dir, 2, content=3)
                prune_checkpoints(run_dir, keep=1, best_step=None, step=2)
            os._exit(0)
        signal = os.waitpid(child, 0)[1]
        newest, names = newest_value(run_dir), sorted(os.listdir(run_dir))
        save(run_dir, 2, content=4)
        trials.append([signal, newest, names, newest_value(run_dir), sorted(os.listdir(run_dir))])
        shutil.rmtree(run_dir)
        number += 1
    print(json.dumps(trials))
"""


def test_before_each_call_of_the_system(tmp_path):
    library = build_failing_calls(tmp_path)
    if library is None:
        pytest.skip("there is no C compiler")
    script = textwrap.dedent(EVERY_CALL)
    finished = run_python("-c", script, str(tmp_path), LD_PRELOAD=str(library), OMP_NUM_THREADS="1")
    assert finished.returncode == 0, finished.stderr
    *killed, last = json.loads(finished.stdout)
    assert last == [0, 3, ["checkpoint_000002"], 4, ["checkpoint_000002"]]
    assert len(killed) >= 25
    values = [newest for _, newest, *_ in killed]
    assert values == sorted(values)  # at first the previous one, from one moment on the new one
    assert {*values} == {2, 3}
    for signal, _, names, next_value, next_names in killed:
        assert signal == 9
        assert len([name for name in names if name.startswith(".")]) <= 2, names
        assert next_value == 4
        assert [name for name in next_names if name.startswith(".")] == []
    all_names = {name for _, _, names, *_ in killed for name in names}
    hidden = {".checkpoint_000002.writing", ".checkpoint_000002.replaced", ".checkpoint_000001.deleting"}
    assert all_names == {"checkpoint_000001", "checkpoint_000002", *hidden}
