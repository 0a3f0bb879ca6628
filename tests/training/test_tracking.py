"""Learning curves, TensorBoard and Weights & Biases."""

from __future__ import annotations

import sys
import time

import pytest
import torch.utils.tensorboard
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from support.run_content import content
from vitfast.training.tracking import draw_curves


def scalars(run_dir) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    return {name: [(one.step, one.value) for one in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_has_the_lines_of_metrics(tmp_path, train_tiny):
    run_dir = tmp_path / "run"
    assert train_tiny(run_dir, "track.tensorboard=true", "train.log_every=4") == 0
    found = scalars(run_dir)
    for line in content(run_dir)["metrics"]:
        for key in ("loss", "top1", "top5", "lr", "images_per_s"):
            values = dict(found[f"{line['split']}/{key}"])
            assert values[line["step"]] == pytest.approx(line[key], rel=1e-6)
    assert [step for step, _ in found["within_epoch/loss"]] == [4, 6, 8, 12]


def test_a_resumed_run_has_no_step_twice(tmp_path, train_tiny):
    run_dir = tmp_path / "run"
    options = ("track.tensorboard=true", "train.log_every=1", "train.checkpoint_every_steps=4")
    assert train_tiny(run_dir, *options) == 0
    checkpoint = run_dir / "checkpoint_000008"
    assert train_tiny(run_dir, f"train.resume={checkpoint}") == 0
    assert [step for step, _ in scalars(run_dir)["within_epoch/loss"]] == list(range(1, 13))


def test_wandb_offline_keeps_a_run(tmp_path, train_tiny):
    run_dir = tmp_path / "run"
    assert train_tiny(run_dir, "track.wandb=offline", "track.project=digits") == 0
    kept = list(run_dir.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(kept) == 1
    deadline = time.monotonic() + 60
    while b"within_epoch/loss" not in kept[0].read_bytes():  # wandb's own process may still be writing
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "does not work" not in (run_dir / "log.txt").read_text()


def test_a_package_that_is_missing_is_a_warning(tmp_path, train_tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert train_tiny(tmp_path / "run", "track.wandb=online") == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "warning: track.wandb does not work: " in log
    assert "; pip install wandb; training continues without it" in log


def test_failed_peer_is_skipped(tmp_path, train_tiny, monkeypatch):
    calls = []

    def add_scalar(self, name, value, step):
        calls.append(name)
        raise OSError("no space left")

    monkeypatch.setattr(torch.utils.tensorboard.SummaryWriter, "add_scalar", add_scalar)
    assert train_tiny(tmp_path / "run", "track.tensorboard=true") == 0
    assert len(calls) == 1
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("track.tensorboard does not work: no space left; training continues without it") == 1


def lines(epochs: int, splits: tuple[str, ...]) -> list[dict]:
    return [
        {"split": split, "epoch": epoch, "loss": 2.0 / epoch, "top1": 1 - 0.9 / epoch}
        for epoch in range(1, epochs + 1)
        for split in splits
    ]


@pytest.mark.parametrize(
    "metrics",
    [
        [],
        lines(1, ("train",)),
        [*lines(40, ("train", "val")), {"split": "test", "epoch": 40, "loss": 0.1, "top1": 0.97}],
        [{"split": "val", "epoch": 1, "loss": None, "top1": 0.5}],
    ],
    ids=["nothing", "one point", "a whole run", "a loss that is null"],
)
def test_figure_is_drawn(tmp_path, metrics):
    draw_curves(metrics, tmp_path / "curves.png", "a model on data")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.format == "PNG"
        assert image.width > 800
        assert len(image.convert("RGB").getcolors(2**24)) > 10
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def test_pyplot_and_its_global_state_stay_out(tmp_path):
    sys.modules.pop("matplotlib.pyplot", None)
    draw_curves(lines(2, ("train", "val")), tmp_path / "curves.png", "title")
    assert "matplotlib.pyplot" not in sys.modules
