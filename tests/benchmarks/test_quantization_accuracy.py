"""The benchmark of accuracy measures what the commands measure, and continues where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.scripts import load_script
from support.tiny_run import TINY_RUN
from vitfast.config import load_options
from vitfast.errors import UserError
from vitfast.runs.run_directory import METRICS

accuracy = load_script("quantization_accuracy")


def options(folder: Path, *more: str) -> accuracy.AccuracyOptions:
    training = ",".join(option for option in TINY_RUN if not option.startswith("optim"))
    arguments = [f"runs={folder / 'runs'}", f"json={folder / 'result.json'}", f"train=[{training}]", "aware_epochs=1"]
    return load_options(accuracy.AccuracyOptions, [*arguments, *more], "benchmark")


def last_test(folder: Path, name: str) -> dict:
    lines = [json.loads(line) for line in (folder / "runs" / name / METRICS).read_text().splitlines()]
    return next(line for line in lines if line["split"] == "test")


@pytest.mark.slow
def test_two_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ("seeds=[0,1]", "formats=[FP16_16,PyTorchINT8]", "aware=[INT8]")
    assert accuracy.run_accuracy_benchmark(options(tmp_path, *small)) == 0
    figures = json.loads((tmp_path / "result.json").read_text())["figures"]
    kinds = [(one["seed"], one["kind"], one["format"]) for one in figures]
    after = [("float32", ""), ("post-training", "FP16_16"), ("post-training", "PyTorchINT8")]
    assert kinds == [
        (seed, *kind) for seed in (0, 1) for kind in (*after, ("float32, trained on as long", ""), ("aware", "INT8"))
    ]
    by_kind = dict(zip(kinds, figures, strict=True))
    assert by_kind[0, "float32", ""]["top1"] == last_test(tmp_path, "digits-seed0")["top1"]
    aware = last_test(tmp_path, "digits-seed1-INT8-epochs1-lr0.0003")
    assert by_kind[1, "aware", "INT8"]["loss"] == aware["loss"]
    table = (tmp_path / "result.md").read_text()
    assert "| FP16_16 | " in table
    assert "over 2 seeds" in table
    assert table.strip() in capsys.readouterr().out

    assert accuracy.run_accuracy_benchmark(options(tmp_path, *small, "aware=[INT8,TF32]")) == 0
    more = json.loads((tmp_path / "result.json").read_text())["figures"]
    assert more[: len(figures)] == figures  # nothing is measured twice
    assert [one["format"] for one in more[len(figures) :]] == ["TF32", "TF32"]
    with pytest.raises(UserError, match="was measured with other options"):
        accuracy.run_accuracy_benchmark(options(tmp_path, "aware_lr=1"))


def test_a_run_that_is_there(tmp_path: Path) -> None:
    assert accuracy.run_accuracy_benchmark(options(tmp_path, "seeds=[0]", "formats=[TF32]", "aware=[]")) == 0
    run = tmp_path / "runs" / "digits-seed0"
    other = ("name=other", f"run={run}", f"json={tmp_path / 'other.json'}", "seeds=[0,1]", "formats=[FP16_32]")
    assert accuracy.run_accuracy_benchmark(options(tmp_path, *other, "aware=[]")) == 0
    figures = json.loads((tmp_path / "other.json").read_text())["figures"]
    assert [(one["seed"], one["format"]) for one in figures] == [(0, ""), (0, "FP16_32"), (1, ""), (1, "FP16_32")]
    assert figures[0]["top1"] == figures[2]["top1"] == last_test(tmp_path, "digits-seed0")["top1"]


def test_a_wrong_format_is_reported_before_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no format 'FP12'"):
        accuracy.run_accuracy_benchmark(options(tmp_path, "aware=[FP12]"))
    assert not list(tmp_path.iterdir())
