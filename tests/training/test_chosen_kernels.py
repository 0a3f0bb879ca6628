"""``ops.kernels``: a run on vitfast's kernels, on torch's operators, or on some of each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from support.tiny_run import TINY_RUN
from vitfast.ops.library import has_kernel, missing_kernel
from vitfast.train import main
from vitfast.training.training_run import resumed_config
from vitfast.weights.checkpoint import latest_checkpoint, load_weights_file

pytestmark = pytest.mark.skipif(missing_kernel("mlp", "cpu") is not None, reason="vitfast's kernels are not built")


def losses(run_dir: Path) -> list[float]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["split"] == "train"]


def train(run_dir: Path, choice: str) -> list[float]:
    assert main([*TINY_RUN, "train.device=cpu", f"ops.kernels={choice}", f"run_dir={run_dir}"]) == 0
    return losses(run_dir)


def test_a_run_learns_the_same_on_torchs_operators_and_says_whose_they_were(tmp_path):
    own, other = train(tmp_path / "own", "auto"), train(tmp_path / "torch", "torch")
    assert own == pytest.approx(other, rel=1e-3)
    weights = [
        load_weights_file(latest_checkpoint(tmp_path / run))["blocks.0.mlp.fc1.weight"] for run in ("own", "torch")
    ]
    assert not torch.equal(*weights), "both runs computed with the same operators"
    states = json.loads((tmp_path / "torch" / "environment.json").read_text())["build_info"]["kernels"]
    assert states["attention"]["cpu"] == "torch: ops.kernels=torch"
    assert "kernels   torch" in (tmp_path / "torch" / "log.txt").read_text()
    assert "ops:\n  kernels: torch" in (tmp_path / "torch" / "config.yaml").read_text()
    assert has_kernel("attention", "cpu"), "the choice outlived the run"
    assert resumed_config(tmp_path / "own", ["ops.kernels=mlp"]).ops.kernels == "mlp"


def test_an_unknown_kernel_ends_with_2_before_anything_is_written(tmp_path, capsys):
    run_dir = tmp_path / "run"
    assert main([*TINY_RUN, "ops.kernels=attention,speed", f"run_dir={run_dir}"]) == 2
    assert "ops.kernels=attention,speed: 'speed' is unknown; allowed: auto, torch, all" in capsys.readouterr().err
    assert not run_dir.exists()
