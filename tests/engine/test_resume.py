"""A run that was interrupted ends as one that was not: the greatest difference is 0."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from vitfast.engine.checkpoint import latest_checkpoint, load_state, load_weights_file
from vitfast.errors import UserError

# everything that draws random numbers or carries a state from step to step
RICH = [
    "model.drop_rate=0.1",
    "model.drop_path=0.1",
    "data.augment.affine_degrees=10",
    "data.augment.affine_translate=0.1",
    "data.augment.erase=0.3",
    "data.augment.repeats=3",
    "data.augment.mixup=0.2",
    "data.augment.cutmix=1",
    "optim.ema_decay=0.9",
    "optim.clip_grad=1.0",
    "optim.label_smoothing=0.1",
    "optim.layer_decay=0.9",
    "train.accumulate=2",
]
STEPS_PER_EPOCH = 6


def differences(first: Any, second: Any, path: str = "") -> list[str]:
    """Names every place where two nested structures differ in any bit; clocks are not compared."""
    if path.endswith(("seconds_in_epoch", "images_per_s")):
        return []
    if isinstance(first, torch.Tensor):
        return [] if first.dtype == second.dtype and torch.equal(first, second) else [path]
    if isinstance(first, dict):
        if first.keys() != second.keys():
            return [f"{path}: keys"]
        return [found for key in first for found in differences(first[key], second[key], f"{path}.{key}")]
    if isinstance(first, (list, tuple)):
        if len(first) != len(second):
            return [f"{path}: length"]
        pairs = enumerate(zip(first, second, strict=True))
        return [found for index, (a, b) in pairs for found in differences(a, b, f"{path}[{index}]")]
    return [] if first == second else [f"{path}: {first} != {second}"]


def content(run_dir: Path) -> dict[str, Any]:
    newest = latest_checkpoint(run_dir)
    assert newest is not None
    found = {
        "name": newest.name,
        "model": load_weights_file(newest),
        "state": load_state(newest),
        "manifest": {
            key: value
            for key, value in json.loads((newest / "manifest.json").read_text()).items()
            if key not in ("files", "manifest_sha256")
        },
        "metrics": [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()],
    }
    if (newest / "ema.safetensors").exists():
        found["ema"] = load_weights_file(newest, "ema")
    return found


@pytest.fixture(scope="module")
def whole_run_dir(tmp_path_factory, train_tiny):
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    assert train_tiny(run_dir, *RICH) == 0
    return run_dir


@pytest.fixture(scope="module")
def whole_run(whole_run_dir):
    return content(whole_run_dir)


@pytest.mark.parametrize("stop_step", [0, 1, 3, STEPS_PER_EPOCH, STEPS_PER_EPOCH + 1, 2 * STEPS_PER_EPOCH])
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
    with pytest.warns(RuntimeWarning, match=r"state.pt is damaged.*passed over"):
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


def test_a_finished_run_is_tested_again_and_stays_the_same(tmp_path, train_tiny, whole_run_dir, whole_run):
    run_dir = tmp_path / "moved"
    shutil.copytree(whole_run_dir, run_dir)
    assert train_tiny(run_dir, f"train.resume={run_dir}") == 0
    assert differences(whole_run, content(run_dir)) == []


def test_what_decides_the_result_cannot_change(tmp_path, train_tiny):
    run_dir = tmp_path / "run"
    assert train_tiny(run_dir, stop_step=1) == 143
    with pytest.raises(UserError, match=r"cannot change: optim.lr=0.5 \(the run: 0.01\)"):
        train_tiny(run_dir, f"train.resume={run_dir}", "optim.lr=0.5")
    with pytest.raises(UserError, match=r"run_dir=.*elsewhere is not .*leave run_dir out"):
        train_tiny(run_dir, f"train.resume={run_dir}", f"run_dir={tmp_path / 'elsewhere'}")
    with pytest.raises(UserError, match="has recipe=digits, not cifar10_folder"):
        train_tiny(run_dir, f"train.resume={run_dir}", "recipe=cifar10_folder")
    # The original command line, repeated by a batch script, is no contradiction.
    assert train_tiny(run_dir, "recipe=digits", "optim.lr=0.01", f"run_dir={run_dir}", f"train.resume={run_dir}") == 0


def test_a_run_without_its_options_cannot_go_on(tmp_path, train_tiny):
    run_dir = tmp_path / "run"
    assert train_tiny(run_dir, stop_step=1) == 143
    (run_dir / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"config.yaml is missing"):
        train_tiny(run_dir, f"train.resume={run_dir}")
