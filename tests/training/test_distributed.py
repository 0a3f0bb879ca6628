"""Distributed training equals training in one process, and resumes like it."""

from __future__ import annotations

import json
import os
import re
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from support.interruption import Interruption
from support.run_content import content, differences
from support.slow import slow
from support.subprocesses import run_python
from support.tiny_run import RICH, TINY_RUN
from vitfast.weights.checkpoint import latest_checkpoint, list_checkpoints, load_state, load_weights_file

PLAIN = (*TINY_RUN, "train.threads=1")
DRAWING = (*PLAIN, *RICH)
# the gradient of the only step is what momentum starts from
ONE_STEP = (*PLAIN, "schedule.steps=1", "schedule.warmup_epochs=0", "optim.name=sgd", "optim.weight_decay=0")


@pytest.fixture
def train(tmp_path, training_server):
    """Trains with some ranks and returns the folder of the run; all have to leave with ``code``."""

    def run(name: str, *options: str, world: int = 2, code: int = 0, interruptions=()):
        run_dir = tmp_path / name
        arguments = (
            [*options] if any("train.resume=" in option for option in options) else [*options, f"run_dir={run_dir}"]
        )
        if world == 1:
            runs = [training_server.start(tmp_path / f"{name}.output", arguments)]
        else:
            runs = training_server.start_ranks(tmp_path / f"{name}.output", arguments, *interruptions, world=world)
        codes = [one.wait() for one in runs]
        assert codes == [code] * world, "".join(one.output.read_text() for one in runs)
        return run_dir

    return run


def gradients(run_dir) -> list[torch.Tensor]:
    state = load_state(latest_checkpoint(run_dir))["optimizer"]["state"]
    return [state[index]["momentum_buffer"] for index in sorted(state)]


def metrics(run_dir) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("options", "world"),
    [
        (("data.batch_size=31", "train.accumulate=2"), 3),  # eleven images, ten and ten
        (("data.batch_size=64", "train.shard=true"), 2),
        *slow([((), 2), (("data.batch_size=1",), 2)]),
    ],
    ids=["accumulated", "sharded", "even", "one rank has none"],
)
def test_gradients_are_those_of_the_whole_batch(train, options, world):
    alone = gradients(train("alone", *ONE_STEP, *options, world=1))
    together = gradients(train("together", *ONE_STEP, *options, world=world))
    for one, other in zip(alone, together, strict=True):
        assert (one - other).norm() <= 1e-6 * one.norm() + 1e-9
    assert sum(float(one.norm()) for one in alone) > 0.1


@pytest.mark.parametrize("shard", [*slow([False]), True])
def test_a_run_ends_as_that_of_one_process(train, shard):
    options = (*PLAIN, "optim.ema_decay=0.9", "optim.clip_grad=1.0", "data.batch_size=250")
    alone = train("alone", *options, world=1)
    together = train("together", *options, f"train.shard={shard}")
    for weights in ("model", "ema"):
        one, other = (load_weights_file(latest_checkpoint(run_dir), weights) for run_dir in (alone, together))
        assert one.keys() == other.keys()
        assert max(float((one[key] - other[key]).abs().max()) for key in one) < 1e-4
    lines = zip(metrics(alone), metrics(together), strict=True)
    assert all(one["loss"] == pytest.approx(other["loss"], rel=1e-4) for one, other in lines)
    # 360 images: a rank that counted one twice would give another share
    assert metrics(together)[-1]["top1"] == pytest.approx(round(metrics(together)[-1]["top1"] * 360) / 360, abs=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(DRAWING, marks=pytest.mark.slow),
        (*DRAWING, "data.workers=2", "train.precision=bf16", "train.shard=true"),
        pytest.param((*PLAIN, "train.precision=fp16"), marks=pytest.mark.slow),
    ],
    ids=["plain", "workers, bf16 and sharded", "fp16"],
)
def test_a_stopped_run_goes_on_bit_by_bit(train, options):
    """The signal reaches one rank only; both leave at the same step."""
    whole = train("whole", *options)
    stopped = train("stopped", *options, code=143, interruptions=[(), (Interruption("step", 3),)])
    assert [path.name for path in list_checkpoints(stopped)] == ["checkpoint_000004"]
    train("resumed", f"train.resume={stopped}")
    assert differences(content(whole), content(stopped)) == []


@pytest.mark.slow
def test_stopped_in_the_evaluation(train):
    whole = train("whole", *DRAWING)
    stopped = train("stopped", *DRAWING, code=143, interruptions=[(Interruption("evaluation", 1),)])
    train("resumed", f"train.resume={stopped}")
    assert differences(content(whole), content(stopped)) == []


def test_another_number_of_ranks_goes_on(train):
    """Not bit by bit, but with all images counted once."""
    stopped = train("stopped", *PLAIN, code=143, interruptions=[(Interruption("step", 3),)])
    train("resumed", f"train.resume={stopped}", world=1)
    alone = train("alone", *PLAIN, world=1)
    lines = zip(metrics(alone), metrics(stopped), strict=True)
    assert all(one["loss"] == pytest.approx(other["loss"], rel=1e-3) for one, other in lines)
    assert all(
        one["top1"] == pytest.approx(other["top1"], abs=0.01)
        for one, other in zip(metrics(alone), metrics(stopped), strict=True)
    )


def test_a_loss_that_is_not_finite_on_one_rank_stops_both_before_the_update(train, tmp_path):
    run_dir = train("run", *PLAIN, code=2, interruptions=[(), (Interruption("loss", 3),)])
    outputs = [(tmp_path / f"run.{rank}").read_text() for rank in range(2)]
    for output in outputs:
        assert re.search(r"error: not finite at step 3, epoch 1: .* images .* no weight has changed", output)
    assert not list_checkpoints(run_dir)


def test_an_error_of_one_rank_ends_both(tmp_path, training_server):
    """An image that cannot be read: its rank says so, the other one that it was left alone."""
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "images" / "train" / name).mkdir(parents=True)
        for index in range(8):
            pixels = generator.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / "train" / name / f"{index}.png")
    (tmp_path / "images" / "train" / "a" / "3.png").write_bytes(b"nothing")
    options = (*PLAIN, "data.dataset=image_folder", f"data.root={tmp_path / 'images'}", "data.batch_size=8")
    arguments = [*options, f"run_dir={tmp_path / 'run'}"]
    runs = training_server.start_ranks(tmp_path / "output", arguments)
    assert [run.wait() for run in runs] == [2, 2]
    outputs = sorted((run.output.read_text() for run in runs), key=lambda text: "3.png" in text)
    assert "lost contact with another rank" in outputs[0]
    assert "a/3.png cannot be decoded as an image" in outputs[1]
    assert "Traceback" not in "".join(outputs)


def test_only_the_main_rank_speaks(train, tmp_path):
    train("run", *PLAIN)
    assert "test  " in (tmp_path / "run.0").read_text()
    assert (tmp_path / "run.1").read_text() == ""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_torchrun_restarts_what_died(train, tmp_path, number):
    """A rank that is killed takes the others with it; all begin again at the last checkpoint, and nothing differs."""
    options = [*DRAWING, "train.checkpoint_every_steps=2"]
    whole = train("whole", *options)
    run_dir = tmp_path / "killed"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2"]
    script = ["-m", "support.train_and_fail", "9", str(int(number))]
    result = run_python(*launch, *script, *options, f"run_dir={run_dir}", OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr
    assert "resumed   checkpoint_" in (run_dir / "log.txt").read_text()
    assert differences(content(whole), content(run_dir)) == []


@pytest.mark.slow
def test_a_rank_that_waits_for_another_obeys_a_signal(training_server, tmp_path):
    first, second = training_server.start_ranks(
        tmp_path / "output", [*PLAIN, "schedule.epochs=500", "train.log_every=1", f"run_dir={tmp_path / 'run'}"]
    )
    log = tmp_path / "run" / "log.txt"
    while not log.exists() or "step 3:" not in log.read_text():
        assert not first.has_ended(0.01), first.output.read_text()
    os.kill(second.pid, signal.SIGSTOP)
    os.kill(first.pid, signal.SIGTERM)
    assert first.wait() == 143
    assert "error: SIGTERM: ended without saving, because another process" in first.output.read_text()
    os.kill(second.pid, signal.SIGKILL)
    second.wait()


def test_restarts_need_to_know_where_the_checkpoints_are(training_server, tmp_path):
    run = training_server.start(tmp_path / "output", PLAIN, RANK="0", WORLD_SIZE="2", TORCHELASTIC_MAX_RESTARTS="2")
    assert run.wait() == 2
    assert "error: torchrun --max-restarts needs run_dir=FOLDER" in run.output.read_text()
