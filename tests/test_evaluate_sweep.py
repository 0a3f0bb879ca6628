"""``python -m vitfast.evaluate exits=sweep``."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from support.tiny_run import TINY_RUN
from vitfast.config.data_schema import EvaluateDataOptions
from vitfast.device import select_device
from vitfast.evaluate import main
from vitfast.evaluation.checkpoint_data import loader_of_split
from vitfast.exits import main as exits
from vitfast.inference import EarlyExit, exit_gmacs
from vitfast.runs.trained_model import TrainedModel, load_trained_model
from vitfast.train import main as train
from vitfast.weights.checkpoint import latest_checkpoint

QUICK = ["sweep.images=16", "sweep.seconds=0.01", "sweep.batch_size=8", "threads=1"]


@pytest.fixture(scope="module")
def run_dir(dvt_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, into which pictures and thresholds are written."""
    return shutil.copytree(dvt_run, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def report(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The figures as JSON; the pictures are in a folder of their own."""
    folder = tmp_path_factory.mktemp("pictures")
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda *text, **_: printed.append(" ".join(map(str, text))))
        options = [f"checkpoint={run_dir}", "exits=sweep", "output=json", f"sweep.folder={folder}"]
        assert main([*options, *QUICK]) == 0
    return json.loads(printed[-1])


def test_its_figures_are_those_of_early_exit(run_dir: Path, report: dict) -> None:
    assert (report["calibration"], report["split"], report["images"]) == ({"split": "val", "images": 144}, "test", 360)
    assert len(report["points"]) == 59
    trained = load_trained_model(str(run_dir), device=select_device("cpu"))
    test, val = (read(trained, split) for split in ("test", "val"))
    images, labels = test
    costs = exit_gmacs(trained.model)
    for point in [report["points"][0], report["points"][30], report["chosen"]]:
        early_exit = EarlyExit(trained.model, point["thresholds"])
        held_out = (early_exit(val[0])[0].argmax(dim=1) == val[1]).float().mean()
        assert point["calibration_top1"] == pytest.approx(float(held_out), abs=1 / 144)
        logits, exit_index = early_exit(images)
        shares = exit_index.bincount(minlength=2) / 360
        assert point["shares"] == pytest.approx(shares.tolist(), abs=1 / 360)
        assert point["top1"] == pytest.approx(float((logits.argmax(dim=1) == labels).float().mean()), abs=1 / 360)
        assert point["gmacs"] == pytest.approx(float(shares @ torch.tensor(costs)), rel=1e-2)
        assert point["images_per_s"]["median"] > 0
    assert report["all_exits"]["shares"] == [0.0, 1.0]
    assert report["all_exits"]["top1"] == report["exits_top1"][-1]
    assert report["all_exits"]["gmacs"] == pytest.approx(costs[-1])


def read(trained: TrainedModel, split: str) -> tuple[torch.Tensor, ...]:
    batches = list(loader_of_split(trained, EvaluateDataOptions(), split))
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))


def test_chosen_thresholds_are_evaluated_on_other_images(report: dict) -> None:
    chosen, points = report["chosen"], report["points"]
    least = report["all_exits"]["calibration_top1"] - chosen["tolerance_points"] / 100 - 1e-9
    assert chosen["calibration_top1"] >= least
    assert any(point["thresholds"] == chosen["thresholds"] for point in [*points, report["all_exits"]])
    assert any(point["top1"] < point["calibration_top1"] - 0.01 for point in points) or any(
        point["top1"] > point["calibration_top1"] + 0.01 for point in points
    )
    assert chosen["share_of_promise"] == pytest.approx(chosen["speedup"]["median"] / chosen["promised_speedup"])
    assert chosen["all_exits_images_per_s"]["median"] > 0
    assert report["alone"]["images_per_s"]["median"] > 0


def test_figures_are_written(report: dict) -> None:
    curve, examples = (Path(path) for path in report["pictures"])
    assert (curve.name, examples.name) == ("exit_curve.png", "exit_examples.png")
    for path in (curve, examples):
        with Image.open(path) as picture:
            assert min(picture.size) > 300
            assert len(picture.convert("L").getcolors(1 << 16) or []) > 50


def test_the_table_is_for_people_and_its_command_stores_the_thresholds(run_dir, tmp_path, capsys):
    capsys.readouterr()
    assert main([f"checkpoint={run_dir}", "exits=sweep", "sweep.calibration=train", "sweep.tolerance=3", *QUICK]) == 0
    shown = capsys.readouterr().out
    assert (run_dir / "exit_curve.png").is_file()
    assert "thresholds  found on train, 1,293 images\n" in shown
    assert re.search(r"^ *threshold 1  leave at 1  leave at 2 +GMACs +images/s +speed-up +top-1$", shown, re.MULTILINE)
    assert re.search(r"^ +none +0\.00 % +100\.00 % .* 1\.00x +\d+\.\d\d %$", shown, re.MULTILINE)
    assert "the cheapest that is on train within 3 points of all exits:" in shown
    assert all(len(line) <= 120 for line in shown.splitlines() if str(run_dir) not in line), shown
    thresholds = float(re.search(r"^  thresholds +([\d.]+), 0$", shown, re.MULTILINE)[1])
    command = re.search(r"store them: python -m vitfast.exits (.*)$", shown, re.MULTILINE)[1]
    assert exits(command.split()) == 0
    stored = json.loads((latest_checkpoint(run_dir) / "manifest.json").read_text())["exit_thresholds"]
    assert stored == pytest.approx([thresholds, 0.0], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["sweep.calibration=test"], "sweep.calibration=test is also split=test"),
        (["sweep.folder=nowhere"], "sweep.folder=nowhere: there is no such folder"),
        (["sweep.images=0"], "sweep.images"),
    ],
)
def test_refused_arguments(run_dir, capsys, options, message):
    capsys.readouterr()
    assert main([f"checkpoint={run_dir}", "exits=sweep", *options]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert message in shown.err


def test_data_without_a_held_out_split(run_dir, tmp_path, capsys):
    for split in ("train", "test"):
        for digit in range(10):
            (tmp_path / split / str(digit)).mkdir(parents=True)
            for index in range(2):
                Image.new("L", (8, 8), 20 * digit).save(tmp_path / split / str(digit) / f"{index}.png")
    assert main([f"checkpoint={run_dir}", "exits=sweep", "data.dataset=image_folder", f"data.root={tmp_path}"]) == 2
    message = capsys.readouterr().err
    assert "sweep.calibration=val: the data have the splits train, test; train with data.val_share=0.05" in message


def test_a_model_without_exits(tmp_path, capsys):
    path = tmp_path / "plain"
    assert train([*TINY_RUN, "schedule.epochs=1", "schedule.warmup_epochs=0", f"run_dir={path}"]) == 0
    assert main([f"checkpoint={path}", "exits=sweep"]) == 2
    assert "vit_nano_patch2_8 has no exits to leave at" in capsys.readouterr().err
