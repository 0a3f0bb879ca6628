"""A run that meets a value that is not finite writes down which images it was about."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.tiny_run import RICH
from vitfast.runs.checkpoint import latest_checkpoint
from vitfast.training.finite_guard import NonFiniteError

# The first update throws the weights so far that the second step is not finite.
HOPELESS = (*RICH, "optim.lr=1e30", "schedule.warmup_epochs=0")


def fail(train_tiny, run_dir: Path, *options: str) -> tuple[NonFiniteError, dict]:
    """The error, and what the run has written down."""
    with pytest.raises(NonFiniteError) as info:
        train_tiny(run_dir, *options)
    return info.value, json.loads((run_dir / "non_finite.json").read_text())


def test_the_whole_batch_is_listed(tmp_path, train_tiny):
    run_dir = tmp_path / "run"
    error, record = fail(train_tiny, run_dir, *HOPELESS)
    assert str(run_dir / "non_finite.json") in str(error)
    assert record["step"] == error.step
    assert record["epoch"] == 1
    assert "nan" in (record["loss"], record["gradient_norm"])
    assert record["indices"] == error.indices
    assert len(record["indices"]) == 256
    assert len(set(record["indices"])) == 86  # each three times, the last one once
    assert all(0 <= index < 1293 for index in record["indices"])
    assert record["files"] == []  # the digits are not files
    assert str(run_dir / "non_finite.json") in (run_dir / "log.txt").read_text()


def test_a_resumed_epoch_counts_from_its_beginning(tmp_path, train_tiny):
    _, whole = fail(train_tiny, tmp_path / "whole", *HOPELESS)
    assert train_tiny(tmp_path / "cut", *HOPELESS, stop_step=1) == 143
    _, resumed = fail(train_tiny, tmp_path / "cut", f"train.resume={tmp_path / 'cut'}")
    assert resumed == whole
    assert latest_checkpoint(tmp_path / "cut") == tmp_path / "cut" / "checkpoint_000001"
