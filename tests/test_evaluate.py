"""``python -m vitfast.evaluate``."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from PIL import Image

from vitfast.evaluate import main
from vitfast.train import main as train
from vitfast.weights.checkpoint import latest_checkpoint


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    options = ["model.fields.embed_dim=32", "model.fields.depth=1", "schedule.epochs=3", "schedule.warmup_epochs=1"]
    options += ["model.fields.patch_size=4"]
    options += ["data.batch_size=64", "optim.lr=0.005", "optim.ema_decay=0.5", f"run_dir={path}"]
    assert train(options) == 0
    return path


def metrics(run_dir, split: str) -> dict:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split][-1]


def evaluate_json(capsys, *options: str) -> dict:
    capsys.readouterr()
    assert main([*options, "output=json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("split", ["test", "val"])
def test_it_repeats_the_figures_of_the_run(run_dir, capsys, split):
    found = evaluate_json(capsys, f"checkpoint={run_dir}", f"split={split}")
    expected = metrics(run_dir, split)
    assert found["weights"] == "ema"
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert found["top1"] == expected["top1"]
    assert found["top5"] == expected["top5"]


def test_the_classes_add_up(run_dir, capsys):
    found = evaluate_json(capsys, f"checkpoint={run_dir}")
    rows = found["per_class"]
    assert [row["class"] for row in rows] == [str(digit) for digit in range(10)]
    assert sum(row["n"] for row in rows) == found["images"] == 360
    correct = sum(row["n"] * row["recall"] for row in rows)
    assert correct / 360 == pytest.approx(found["top1"])
    assert 0 < found["calibration_error"] < 1


def test_an_image_that_cannot_be_read_is_no_silent_loss(run_dir, capsys, tmp_path):
    for digit in range(10):
        (tmp_path / "test" / str(digit)).mkdir(parents=True)
        for index in range(3):
            Image.new("L", (8, 8), 20 * digit).save(tmp_path / "test" / str(digit) / f"{index}.png")
    bad = tmp_path / "test" / "4" / "1.png"
    bad.write_bytes(b"")
    options = [f"checkpoint={run_dir}", "data.dataset=image_folder", f"data.root={tmp_path}", "data.batch_size=1"]
    capsys.readouterr()
    assert main(options) == 2
    assert capsys.readouterr().err.startswith(f"error: {bad} cannot be decoded as an image: the file is empty")
    found = evaluate_json(capsys, *options, "data.on_corrupt=skip")
    assert (found["images"], found["unreadable_images"]) == (29, 1)
    assert [row["n"] for row in found["per_class"]] == [3, 3, 3, 3, 2, 3, 3, 3, 3, 3]
    assert main([*options, "data.on_corrupt=skip"]) == 0
    shown = capsys.readouterr()
    assert "test, 29 images of 30: 1 cannot be read\n" in shown.out
    assert shown.err.startswith(f"warning: {bad} cannot be decoded as an image: the file is empty")
    assert shown.err.count("warning") == 1


def test_the_weights_can_be_chosen(run_dir, capsys):
    auto, ema, model = (
        evaluate_json(capsys, f"checkpoint={run_dir}", f"weights={weights}") for weights in ("auto", "ema", "model")
    )
    assert auto["loss"] == ema["loss"]
    assert model["loss"] != ema["loss"]
    assert model["weights"] == "model"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16_32", "int8"])
def test_accelerated_models_are_measured_beside_their_source(run_dir, capsys, precision):
    plain = evaluate_json(capsys, f"checkpoint={run_dir}")
    found = evaluate_json(capsys, f"checkpoint={run_dir}", f"accelerate={precision}")
    beside = found["accelerate"]
    assert beside["precision"] == precision
    assert {key: beside["source"][key] for key in ("loss", "top1", "top5")} == {
        key: plain[key] for key in ("loss", "top1", "top5")
    }
    assert found["loss"] == pytest.approx(plain["loss"], rel={"fp32": 1e-6, "fp16_32": 1e-4}.get(precision, 3e-2))
    if precision in ("bf16", "int8"):
        assert found["loss"] != pytest.approx(plain["loss"], rel=1e-6), "it ran in fp32"
    assert 0.95 < beside["agreement"] <= 1
    assert (beside["agreement"] == 1) or precision != "fp32"
    assert abs(found["top1"] - plain["top1"]) <= 1 - beside["agreement"]


def test_accelerated_models_are_named_as_such(run_dir, capsys):
    capsys.readouterr()
    assert main([f"checkpoint={run_dir}", "accelerate=int8"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^runs     accelerated, in int8, by \w+", shown, re.MULTILINE)
    assert re.search(r"^same class as not accelerated +\d+\.\d\d %$", shown, re.MULTILINE)


def test_the_train_split_is_read_plainly(run_dir, capsys):
    first, second = (evaluate_json(capsys, f"checkpoint={run_dir}", "split=train") for _ in range(2))
    assert first["images"] == 1293
    assert first["loss"] == second["loss"]


def test_the_table_is_for_people(run_dir, capsys):
    capsys.readouterr()
    assert main([f"checkpoint={run_dir}"]) == 0
    shown = capsys.readouterr().out
    assert f"averaged weights (EMA) of {latest_checkpoint(run_dir)}" in shown
    assert "test, 360 images" in shown
    assert re.search(r"^top-1 +\d+\.\d\d %$", shown, re.MULTILINE)
    assert re.search(r"^7 +36 +", shown, re.MULTILINE)
    assert re.search(r"^most frequent mistakes:\n  \d+ x \d predicted as \d$", shown, re.MULTILINE)
    assert all(len(line) <= 120 for line in shown.splitlines() if str(run_dir) not in line), shown


def test_a_checkpoint_alone_is_enough(run_dir, capsys, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(latest_checkpoint(run_dir), moved)
    alone = evaluate_json(capsys, f"checkpoint={moved}")
    assert alone["loss"] == pytest.approx(metrics(run_dir, "test")["loss"], rel=1e-5)


def test_a_damaged_newest_checkpoint_is_passed_over_aloud(run_dir, capsys, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    newest = latest_checkpoint(copy)
    (newest / "ema.safetensors").write_bytes(b"")
    capsys.readouterr()
    assert main([f"checkpoint={copy}"]) == 0
    shown = capsys.readouterr()
    assert shown.err.startswith(f"warning: {newest / 'ema.safetensors'} is damaged")
    assert newest.name not in shown.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "checkpoint=… is missing"),
        (["checkpoint=nowhere"], "nowhere does not exist"),
        (["checkpoint=RUN", "split=holdout"], "split=holdout"),
        (["checkpoint=RUN", "data.dataset=image_folder"], "data.root"),
        (["checkpoint=RUN", "data.dataset=image_folder", "data.root=nowhere"], "nowhere"),
        (["checkpoint=RUN", "chekpoint=x"], "checkpoint"),
        (["checkpoint=RUN", "accelerate=fp8"], "accelerate=fp8 is not allowed; allowed: one of: fp32, bf16"),
        (["checkpoint=RUN", "merge_tokens=2"], "merge_tokens=2 needs an accelerated model; add accelerate=fp32"),
        (["checkpoint=RUN", "accelerate=int8", "precision=bf16"], "leave out precision=bf16, or accelerate"),
        (["checkpoint=RUN", "accelerate=int8", "early_exit=true", "exits=sweep"], "exits=sweep and early_exit=true"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(run_dir, capsys, options, message):
    assert main([option.replace("RUN", str(run_dir)) for option in options]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert message in shown.err
    assert shown.out == ""


def test_other_classes_are_refused(run_dir, capsys, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "test" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "test" / name / "1.png")
    options = ["data.dataset=image_folder", f"data.root={tmp_path}"]
    assert main([f"checkpoint={run_dir}", *options]) == 2
    assert "the data have the classes cat, dog, but the checkpoint has 0, 1, 2, 3, 4, …" in capsys.readouterr().err
