"""``python -m vitfast.exits``, and early exit in ``python -m vitfast.evaluate``."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import vitfast
from support.tiny_run import TINY_RUN
from vitfast.config.data_schema import EvaluateDataOptions
from vitfast.device import select_device
from vitfast.evaluate import main as evaluate
from vitfast.evaluation.checkpoint_data import loader_of_split
from vitfast.exits import main
from vitfast.inference import exit_gmacs
from vitfast.predict import main as predict
from vitfast.runs.trained_model import load_trained_model
from vitfast.train import main as train
from vitfast.weights.checkpoint import latest_checkpoint, read_manifest, update_manifest, verify_checkpoint


@pytest.fixture
def run_dir(dvt_run: Path, tmp_path: Path) -> Path:
    """A copy, into which thresholds may be written."""
    shutil.copytree(dvt_run, tmp_path / "run")
    return tmp_path / "run"


def run(capsys: pytest.CaptureFixture[str], command, *options: str) -> str:
    capsys.readouterr()
    assert command(list(options)) == 0
    return capsys.readouterr().out


def refusal(capsys: pytest.CaptureFixture[str], command, *options: str) -> str:
    capsys.readouterr()
    assert command(list(options)) == 2
    return capsys.readouterr().err


def middle_budget(run_dir: Path) -> float:
    manifest = read_manifest(latest_checkpoint(run_dir))
    return sum(exit_gmacs(vitfast.create_model(manifest["model"]["name"], **manifest["model"]["fields"]))) / 2


def test_the_curve_alone_changes_nothing(run_dir, capsys):
    checkpoint = latest_checkpoint(run_dir)
    before = {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    shown = run(capsys, main, f"checkpoint={run_dir}")
    assert "val, 144 images\n" in shown
    assert re.search(r"^threshold 1  leave at 1  leave at 2  GMACs an image +top-1$", shown, re.MULTILINE)
    assert len(re.findall(r"^ +\d\.\d{4} +\d+\.\d\d % ", shown, re.MULTILINE)) > 30
    assert "stored" not in shown
    assert {file.name: file.read_bytes() for file in checkpoint.iterdir()} == before


def test_the_thresholds_are_those_of_the_function_and_the_weights_stay(run_dir, capsys):
    checkpoint = latest_checkpoint(run_dir)
    weights = (checkpoint / "model.safetensors").read_bytes()
    budget = middle_budget(run_dir)
    shown = run(capsys, main, f"checkpoint={run_dir}", f"budget_gmacs={budget!r}", "search=false")
    assert f"stored in {checkpoint}:" in shown
    thresholds = verify_checkpoint(checkpoint)["exit_thresholds"]
    trained = load_trained_model(str(run_dir), device=select_device("cpu"))
    assert trained.exit_thresholds == thresholds
    loader = loader_of_split(trained, EvaluateDataOptions(), "val")
    found = vitfast.calibrate_exits(trained.model, loader, budget_gmacs=budget, search=False)
    assert thresholds == pytest.approx(found, abs=1e-6)
    assert 0 < thresholds[0] < 1
    assert (checkpoint / "model.safetensors").read_bytes() == weights


def test_evaluate_uses_them(run_dir, capsys):
    assert "holds no thresholds; find them with python -m vitfast.exits" in refusal(
        capsys, evaluate, f"checkpoint={run_dir}", "early_exit=true"
    )
    budget = middle_budget(run_dir)
    run(capsys, main, f"checkpoint={run_dir}", f"budget_gmacs={budget!r}", "search=false")
    plain = json.loads(run(capsys, evaluate, f"checkpoint={run_dir}", "output=json"))
    assert "early_exit" not in plain
    both = json.loads(run(capsys, evaluate, f"checkpoint={run_dir}", "output=json", "early_exit=true"))
    assert (both["loss"], both["top1"], both["exits"]) == (plain["loss"], plain["top1"], plain["exits"])
    early = both["early_exit"]
    assert early["thresholds"] == read_manifest(latest_checkpoint(run_dir))["exit_thresholds"]

    trained = load_trained_model(str(run_dir), device=select_device("cpu"))
    batches = list(loader_of_split(trained, EvaluateDataOptions(), "test"))
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    logits, exit_index = vitfast.EarlyExit(trained.model, early["thresholds"])(images)
    counts = exit_index.bincount(minlength=2)
    assert (counts > 0).all()
    assert early["shares"] == pytest.approx((counts / 360).tolist())
    assert early["top1"] == pytest.approx(float((logits.argmax(dim=1) == labels).float().mean()))
    assert early["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-4)
    costs = exit_gmacs(trained.model)
    assert early["gmacs"] == pytest.approx(float((counts / 360) @ torch.tensor(costs)))
    assert costs[0] < early["gmacs"] < early["all_exits_gmacs"] == costs[1]
    assert early["images_per_s"] > 0

    shown = run(capsys, evaluate, f"checkpoint={run_dir}", "early_exit=true")
    assert re.search(rf"^early exit: leave at 1 +{100 * early['shares'][0]:.2f} %$", shown, re.MULTILINE)
    assert re.search(r"^early exit: images/s +[\d,]+$", shown, re.MULTILINE)


def pictures(folder: Path, count: int = 12) -> Path:
    folder.mkdir()
    for index in range(count):
        pixels = torch.randint(0, 256, (16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(index))
        Image.fromarray(pixels.numpy()).save(folder / f"{index:02}.png")
    return folder


def test_predict_leaves_early_and_says_where(run_dir, tmp_path, capsys):
    options = [f"checkpoint={run_dir}", f"images={pictures(tmp_path / 'pictures')}", "batch_size=5", "top=10"]
    without = [json.loads(line) for line in run(capsys, predict, *options, "output=jsonl").splitlines()]
    assert all("exit" not in line for line in without)

    first = [max(json.loads(line)["probabilities"]) for line in _answers(run_dir, tmp_path, capsys, [0.0, 0.0])]
    middle = (sorted(first)[5] + sorted(first)[6]) / 2
    lines = [json.loads(line) for line in _answers(run_dir, tmp_path, capsys, [middle, 0.0])]
    assert [line["exit"] for line in lines] == [1 if sure >= middle else 2 for sure in first]
    for line, sure, late in zip(lines, first, without, strict=True):
        if line["exit"] == 1:
            assert line["probabilities"][0] == pytest.approx(sure, abs=1e-5)
        else:
            assert line["classes"] == late["classes"]
            assert line["probabilities"] == pytest.approx(late["probabilities"], abs=1e-5)
    shown = run(capsys, predict, *options)
    assert len(re.findall(r"^\S+\.png +exit [12]  \d ", shown, re.MULTILINE)) == 12
    switched_off = run(capsys, predict, *options, "output=jsonl", "early_exit=false")
    assert [json.loads(line) for line in switched_off.splitlines()] == without


def _answers(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], thresholds: list[float]) -> list[str]:
    update_manifest(latest_checkpoint(run_dir), {"exit_thresholds": thresholds})
    options = [f"checkpoint={run_dir}", f"images={tmp_path / 'pictures'}", "output=jsonl", "batch_size=5", "top=10"]
    return run(capsys, predict, *options).splitlines()


@pytest.mark.parametrize("command", [predict, evaluate])
def test_thresholds_of_another_model_are_named(command, run_dir, tmp_path, capsys):
    checkpoint = latest_checkpoint(run_dir)
    update_manifest(checkpoint, {"exit_thresholds": [0.9, 0.8, 0.0]})
    options = [f"images={pictures(tmp_path / 'pictures', 1)}"] if command is predict else ["early_exit=true"]
    message = refusal(capsys, command, f"checkpoint={run_dir}", *options)
    assert (
        f"{checkpoint}/manifest.json: exit_thresholds=[0.9, 0.8, 0.0] are not those of its model dvt_nano_16" in message
    )
    assert "thresholds has 3 numbers, the model has 2 exits" in message
    assert f"python -m vitfast.exits checkpoint={checkpoint} budget_gmacs=…" in message


def test_a_budget_of_milliseconds(run_dir, capsys):
    shown = run(capsys, main, f"checkpoint={run_dir}", "budget_ms=1e6", "search=false", "precision=bf16")
    assert "ms an image" in shown
    assert read_manifest(latest_checkpoint(run_dir))["exit_thresholds"] == [2.0, 0.0]
    assert "budget_ms=1e-09 is less than the first exit costs" in refusal(
        capsys, main, f"checkpoint={run_dir}", "budget_ms=1e-9"
    )
    assert read_manifest(latest_checkpoint(run_dir))["exit_thresholds"] == [2.0, 0.0]


def test_refused_arguments(run_dir, capsys):
    first, last = f"checkpoint={run_dir}", "budget_gmacs=1"
    assert "budget_gmacs and budget_ms are both given" in refusal(capsys, main, first, last, "budget_ms=1")
    assert "budget_gmacs=1e-09 is less than the first exit costs" in refusal(capsys, main, first, "budget_gmacs=1e-9")
    assert "budget_gmacs" in refusal(capsys, main, first, "budget_gmacs=0")
    assert read_manifest(latest_checkpoint(run_dir))["exit_thresholds"] is None


def test_a_model_without_exits(tmp_path, capsys):
    path = tmp_path / "plain"
    assert train([*TINY_RUN, "schedule.epochs=1", "schedule.warmup_epochs=0", f"run_dir={path}"]) == 0
    assert "vit_nano_patch2_8 has no exits to leave at" in refusal(capsys, main, f"checkpoint={path}")
    assert "early_exit=true: vit_nano_patch2_8 has no exits" in refusal(
        capsys, evaluate, f"checkpoint={path}", "early_exit=true"
    )
