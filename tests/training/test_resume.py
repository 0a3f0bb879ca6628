"""An interrupted run ends bit-identical to an uninterrupted one."""

from __future__ import annotations

import shutil
from unittest.mock import Mock

import pytest
import torch

from support.run_content import content, differences
from support.slow import slow
from support.tiny_run import RICH
from vitfast.errors import UserError
from vitfast.training.trainer import Trainer
from vitfast.weights.checkpoint import latest_checkpoint

STEPS_PER_EPOCH = 6


@pytest.fixture(scope="module")
def whole_run_dir(tmp_path_factory, train_tiny):
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    assert train_tiny(run_dir, *RICH) == 0
    return run_dir


@pytest.fixture(scope="module")
def whole_run(whole_run_dir):
    return content(whole_run_dir)


@pytest.mark.parametrize("stop_step", [3, STEPS_PER_EPOCH, *slow([0, 1, STEPS_PER_EPOCH + 1, 2 * STEPS_PER_EPOCH])])
def test_interrupted_after_any_step(tmp_path, train_tiny, whole_run, stop_step):
    run_dir = tmp_path / "interrupted"
    assert train_tiny(run_dir, *RICH, stop_step=stop_step) == 143
    assert latest_checkpoint(run_dir) == run_dir / f"checkpoint_{stop_step:06d}"
    torch.manual_seed(99)  # another process would stand elsewhere, too
    assert train_tiny(run_dir, f"train.resume={run_dir}") == 0
    assert differences(whole_run, content(run_dir)) == []


def test_interrupted_in_the_validation_and_twice(tmp_path, train_tiny, whole_run):
    run_dir = tmp_path / "interrupted"
    assert train_tiny(run_dir, *RICH, stop_in_evaluation=True) == 143
    assert not (run_dir / "metrics.jsonl").exists()
    assert train_tiny(run_dir, f"train.resume={run_dir}", stop_step=STEPS_PER_EPOCH + 2) == 143
    assert train_tiny(run_dir, f"train.resume={run_dir}") == 0
    assert differences(whole_run, content(run_dir)) == []


def test_from_an_older_checkpoint_after_a_crash(tmp_path, train_tiny, whole_run_dir, whole_run):
    """What was written after the checkpoint is done again, and its metrics do not appear twice."""
    run_dir = tmp_path / "crashed"
    shutil.copytree(whole_run_dir, run_dir)
    first = run_dir / f"checkpoint_{STEPS_PER_EPOCH:06d}"
    assert train_tiny(run_dir, f"train.resume={first}") == 0
    assert differences(whole_run, content(run_dir)) == []


def test_a_damaged_newest_checkpoint_costs_one_interval(tmp_path, train_tiny, whole_run):
    run_dir = tmp_path / "damaged"
    assert train_tiny(run_dir, *RICH, stop_step=STEPS_PER_EPOCH + 3) == 143
    file = run_dir / f"checkpoint_{STEPS_PER_EPOCH + 3:06d}" / "state.pt"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.warns(RuntimeWarning, match=r"state.pt is damaged.*is skipped"):
        assert train_tiny(run_dir, f"train.resume={run_dir}") == 0
    assert differences(whole_run, content(run_dir)) == []


def test_bf16_without_an_average(tmp_path, train_tiny):
    options = ["train.precision=bf16", "model.drop_rate=0.1"]
    assert train_tiny(tmp_path / "whole", *options) == 0
    assert train_tiny(tmp_path / "cut", *options, stop_step=8) == 143
    assert train_tiny(tmp_path / "cut", f"train.resume={tmp_path / 'cut'}") == 0
    assert differences(content(tmp_path / "whole"), content(tmp_path / "cut")) == []


def test_the_number_of_workers_may_change(tmp_path, train_tiny, whole_run):
    run_dir = tmp_path / "workers"
    assert train_tiny(run_dir, *RICH, "data.workers=2", stop_step=2) == 143
    assert train_tiny(run_dir, f"train.resume={run_dir}", "data.workers=1", stop_step=9) == 143
    assert train_tiny(run_dir, f"train.resume={run_dir}", "data.workers=0") == 0
    assert differences(whole_run, content(run_dir)) == []


def test_drop_last_counts_its_steps(tmp_path, train_tiny):
    options = ["data.drop_last=true", "data.batch_size=500"]
    assert train_tiny(tmp_path / "whole", *options) == 0
    assert train_tiny(tmp_path / "cut", *options, stop_step=3) == 143
    assert train_tiny(tmp_path / "cut", f"train.resume={tmp_path / 'cut'}") == 0
    assert content(tmp_path / "whole")["name"] == "checkpoint_000004"
    assert differences(content(tmp_path / "whole"), content(tmp_path / "cut")) == []


@pytest.fixture
def killed_at_once(train_tiny, monkeypatch):
    """Resumes a run in a process that dies before its first step."""

    def resume(checkpoint):
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "fit", Mock(side_effect=RuntimeError("SIGKILL")))
            with pytest.raises(RuntimeError, match="SIGKILL"):
                train_tiny(checkpoint, f"train.resume={checkpoint}")

    return resume


def test_the_metrics_are_those_of_the_checkpoint_that_is_chosen(tmp_path, train_tiny, killed_at_once, whole_run_dir):
    """Whatever ``metrics.jsonl`` contains: here it was cut back to an older checkpoint, then lost."""
    run_dir = tmp_path / "run"
    shutil.copytree(whole_run_dir, run_dir)
    killed_at_once(run_dir / f"checkpoint_{STEPS_PER_EPOCH:06d}")
    assert [(row["split"], row["epoch"]) for row in content(run_dir)["metrics"]] == [("train", 1), ("val", 1)]
    manifest = run_dir / f"checkpoint_{2 * STEPS_PER_EPOCH:06d}" / "manifest.json"
    manifest.rename(tmp_path / "elsewhere")
    with pytest.warns(RuntimeWarning, match="is skipped"):
        killed_at_once(run_dir)
    (tmp_path / "elsewhere").rename(manifest)
    killed_at_once(run_dir)
    rows = content(whole_run_dir)["metrics"]
    assert content(run_dir)["metrics"] == rows[:-1]  # the run ended before its test
    (run_dir / "metrics.jsonl").unlink()
    for _ in range(2):
        assert train_tiny(run_dir, f"train.resume={run_dir}") == 0
        assert differences(rows, content(run_dir)["metrics"]) == []


def test_a_finished_run_is_tested_again_and_stays_the_same(tmp_path, train_tiny, whole_run_dir, whole_run):
    run_dir = tmp_path / "moved"
    shutil.copytree(whole_run_dir, run_dir)
    assert train_tiny(run_dir, f"train.resume={run_dir}") == 0
    assert differences(whole_run, content(run_dir)) == []


def test_a_finished_run_is_extended(tmp_path, train_tiny, capsys):
    """Where the learning rate does not depend on the length, the result is that of the longer run."""
    run_dir, options = tmp_path / "run", ("schedule.name=constant", "optim.ema_decay=0.9")
    assert train_tiny(tmp_path / "whole", *options, "schedule.epochs=3") == 0
    assert train_tiny(run_dir, *options, "schedule.epochs=2") == 0
    with pytest.raises(UserError, match=r"cannot change .*schedule.epochs=1 .*schedule.steps may become larger"):
        train_tiny(run_dir, f"train.resume={run_dir}", "schedule.epochs=1")
    assert train_tiny(run_dir, f"train.resume={run_dir}", "schedule.epochs=3", stop_step=13) == 143
    assert "extended  from 12 to 18 steps; the learning rate follows" in capsys.readouterr().err
    assert train_tiny(run_dir, f"train.resume={run_dir}") == 0
    assert differences(content(tmp_path / "whole"), content(run_dir)) == []
    assert "extended" not in capsys.readouterr().err


def test_a_run_that_ended_within_an_epoch_is_not_extended(tmp_path, train_tiny):
    assert train_tiny(tmp_path / "run", "schedule.steps=8", "schedule.warmup_steps=2") == 0
    with pytest.raises(UserError, match=r"ended within an epoch, after 8 steps of schedule\.steps=8, and cannot be"):
        train_tiny(tmp_path / "run", f"train.resume={tmp_path / 'run'}", "schedule.steps=20")


def test_options_that_decide_the_result_cannot_change(tmp_path, train_tiny):
    run_dir = tmp_path / "run"
    assert train_tiny(run_dir, stop_step=1) == 143
    with pytest.raises(UserError, match=r"cannot change these options: optim.lr=0.5 \(the run: 0.01\)"):
        train_tiny(run_dir, f"train.resume={run_dir}", "optim.lr=0.5")
    with pytest.raises(UserError, match=r"run_dir=.*elsewhere is not .*leave run_dir out"):
        train_tiny(run_dir, f"train.resume={run_dir}", f"run_dir={tmp_path / 'elsewhere'}")
    with pytest.raises(UserError, match="has recipe=vit_digits, not vit_small_cifar10_32px"):
        train_tiny(run_dir, f"train.resume={run_dir}", "recipe=vit_small_cifar10_32px")
    # The original command line, repeated by a batch script, is no contradiction.
    assert (
        train_tiny(run_dir, "recipe=vit_digits", "optim.lr=0.01", f"run_dir={run_dir}", f"train.resume={run_dir}") == 0
    )


def test_a_run_without_its_options_cannot_go_on(tmp_path, train_tiny):
    run_dir = tmp_path / "run"
    assert train_tiny(run_dir, stop_step=1) == 143
    (run_dir / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"config.yaml is missing"):
        train_tiny(run_dir, f"train.resume={run_dir}")


def test_a_log_that_cannot_be_written_does_not_stop_the_run(tmp_path, train_tiny, whole_run):
    run_dir = tmp_path / "run"
    assert train_tiny(run_dir, *RICH, stop_step=3) == 143
    (run_dir / "log.txt").unlink()
    (run_dir / "log.txt").symlink_to("/dev/full")
    assert train_tiny(run_dir, f"train.resume={run_dir}") == 0
    assert differences(whole_run, content(run_dir)) == []
