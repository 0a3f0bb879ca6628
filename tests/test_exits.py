"""``python -m vitfast.exits`` as a user meets it, and early exit in ``python -m vitfast.evaluate``."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

import vitfast
from support.tiny_run import TINY_RUN
from vitfast.engine.checkpoint import latest_checkpoint, read_manifest, verify_checkpoint
from vitfast.engine.device import select_device
from vitfast.engine.evaluation_report import EvaluateDataOptions, loader_of_split
from vitfast.engine.trained_model import load_trained_model
from vitfast.evaluate import main as evaluate
from vitfast.exits import main
from vitfast.inference import exit_gmacs
from vitfast.train import main as train


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    options = ["model.name=dvt_nano_16", "model.fields.embed_dim=16", "model.fields.num_heads=2"]
    options += ["model.fields.depth=1", "data.batch_size=64", "data.augment.affine_translate=0", "optim.lr=0.01"]
    options += ["schedule.epochs=3", "schedule.warmup_epochs=1", f"run_dir={path}"]
    assert train(options) == 0
    return path


@pytest.fixture
def run_dir(trained_run: Path, tmp_path: Path) -> Path:
    """A copy, into which thresholds may be written."""
    shutil.copytree(trained_run, tmp_path / "run")
    return tmp_path / "run"


def run(capsys: pytest.CaptureFixture[str], verb, *options: str) -> str:
    capsys.readouterr()
    assert verb(list(options)) == 0
    return capsys.readouterr().out


def refusal(capsys: pytest.CaptureFixture[str], verb, *options: str) -> str:
    capsys.readouterr()
    assert verb(list(options)) == 2
    return capsys.readouterr().err


def middle_budget(run_dir: Path) -> float:
    manifest = read_manifest(run_dir)
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
    assert early["thresholds"] == read_manifest(run_dir)["exit_thresholds"]

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


def test_a_budget_of_milliseconds(run_dir, capsys):
    shown = run(capsys, main, f"checkpoint={run_dir}", "budget_ms=1e6", "search=false", "precision=bf16")
    assert "ms an image" in shown
    assert read_manifest(run_dir)["exit_thresholds"] == [2.0, 0.0]
    assert "budget_ms=1e-09 is less than the first exit costs" in refusal(
        capsys, main, f"checkpoint={run_dir}", "budget_ms=1e-9"
    )
    assert read_manifest(run_dir)["exit_thresholds"] == [2.0, 0.0]


def test_what_is_refused(run_dir, capsys):
    first, last = f"checkpoint={run_dir}", "budget_gmacs=1"
    assert "budget_gmacs and budget_ms are both given" in refusal(capsys, main, first, last, "budget_ms=1")
    assert "budget_gmacs=1e-09 is less than the first exit costs" in refusal(capsys, main, first, "budget_gmacs=1e-9")
    assert "budget_gmacs" in refusal(capsys, main, first, "budget_gmacs=0")
    assert read_manifest(run_dir)["exit_thresholds"] is None


def test_a_model_without_exits(tmp_path, capsys):
    path = tmp_path / "plain"
    assert train([*TINY_RUN, "schedule.epochs=1", "schedule.warmup_epochs=0", f"run_dir={path}"]) == 0
    assert "vit_nano_patch2_8 has no exits to leave at" in refusal(capsys, main, f"checkpoint={path}")
    assert "early_exit=true: vit_nano_patch2_8 has no exits" in refusal(
        capsys, evaluate, f"checkpoint={path}", "early_exit=true"
    )
