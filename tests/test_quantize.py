"""``python -m vitfast.quantize``."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from PIL import Image
from sklearn.metrics import classification_report

import vitfast
from support.slow import slow
from vitfast.evaluate import main as evaluate
from vitfast.predict import main as predict
from vitfast.quantize import main
from vitfast.runs.trained_model import load_trained_model
from vitfast.train import main as train
from vitfast.visualize import main as visualize
from vitfast.weights.checkpoint import read_manifest

CPU = torch.device("cpu")
MODEL = [
    "model.name=vit_nano_patch2_8",
    "model.fields.embed_dim=32",
    "model.fields.depth=1",
    "model.fields.patch_size=4",
]
MODEL += ["data.img_size=8", "data.batch_size=64"]
MODEL += [f"data.augment.affine_{name}=0" for name in ("degrees", "translate", "scale")]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    options = ["schedule.epochs=5", "schedule.warmup_epochs=1", "optim.lr=0.005", "optim.ema_decay=0.5"]
    assert train([*MODEL, *options, f"run_dir={path}"]) == 0
    return path


@pytest.fixture(scope="module")
def aware_dir(tmp_path_factory, run_dir):
    path = tmp_path_factory.mktemp("runs") / "aware"
    options = ["schedule.epochs=1", "schedule.warmup_epochs=0", "optim.lr=0.001", "quantize.format=FP16_16"]
    assert train([*MODEL, *options, f"model.checkpoint={run_dir}", f"run_dir={path}"]) == 0
    return path


def report_of(folder) -> dict:
    return json.loads((folder / "quantization.json").read_text())


FORMATS = [
    ("FP16_32", [], torch.float16, 0.62),
    ("FP16_16", ["numerics=qtorch"], torch.float16, 0.62),
    ("INT8", [], torch.int8, 0.45),
    ("PyTorchINT8", ["calibration_images=100"], torch.int8, 0.45),
    ("FP8_E4M3FN", [], torch.float8_e4m3fn, 0.40),
    ("FixedPoint11Integral3", ["overrides=[head=FP32]"], torch.float16, 0.66),
]


@pytest.mark.parametrize(("name", "options", "dtype", "share"), [*FORMATS[1:4:2], *slow(FORMATS[::2] + FORMATS[5:])])
def test_a_quantized_checkpoint_is_small_and_every_verb_takes_it(
    run_dir, tmp_path, capsys, name, options, dtype, share
):
    target = tmp_path / "small"
    capsys.readouterr()
    assert main([f"checkpoint={run_dir}", f"format={name}", f"output={target}", *options]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^float32 +\d+\.\d\d % ", shown, re.MULTILINE)
    assert re.search(r"^blocks\.0\.mlp\.fc1 +\d+\.\d dB +\d", shown, re.MULTILINE)
    assert "per_class" not in shown

    figures = report_of(target)
    assert figures["bytes"][1] < share * figures["bytes"][0]
    assert figures["quantized"]["top1"] > 0.8 * figures["float32"]["top1"] > 0.3
    assert (target / "quantization.png").stat().st_size > 10_000
    import safetensors.torch

    stored = safetensors.torch.load_file(target / "model.safetensors")
    assert stored["blocks.0.mlp.fc1.weight"].dtype == dtype

    trained = load_trained_model(str(target), device=CPU)
    assert read_manifest(target)["quantization"]["converted"]
    assert vitfast.quantization_record(trained.model) == read_manifest(target)["quantization"]
    capsys.readouterr()
    assert evaluate([f"checkpoint={target}", "output=json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["top1"] == figures["quantized"]["top1"]
    assert found["loss"] == pytest.approx(figures["quantized"]["loss"], rel=1e-6)
    picture = tmp_path / "digit.png"
    Image.new("L", (8, 8), 90).save(picture)
    assert predict([f"checkpoint={target}", f"images={picture}", "output=jsonl"]) == 0
    assert visualize([f"checkpoint={target}", f"images={picture}", f"target={tmp_path / 'maps'}"]) == 0


def test_the_default_place_and_a_second_time(run_dir, capsys):
    for _ in range(2):
        assert main([f"checkpoint={run_dir}", "format=FP16_32"]) == 0
    source = load_trained_model(str(run_dir), device=CPU).checkpoint
    folder = source.with_name(f"{source.name}_fp16_32")
    assert f"The quantized checkpoint is {folder}" in capsys.readouterr().out
    assert load_trained_model(str(run_dir), device=CPU).checkpoint == source  # the run's is still the one of training
    assert not list(run_dir.glob(".*"))
    assert evaluate([f"checkpoint={folder}", "quantized_ckpt=true"]) == 0
    assert "FP16_32, converted" in capsys.readouterr().out


def test_float32_accuracy_equals_evaluate(run_dir, tmp_path, capsys):
    assert main([f"checkpoint={run_dir}", "format=TF32", f"output={tmp_path / 'q'}", "weights=model", "split=val"]) == 0
    capsys.readouterr()
    assert evaluate([f"checkpoint={run_dir}", "weights=model", "split=val", "output=json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert report_of(tmp_path / "q")["float32"]["loss"] == pytest.approx(found["loss"], rel=1e-6)


def test_the_report_per_class_is_scikit_learns(run_dir, tmp_path, capsys):
    target, figures = tmp_path / "q", tmp_path / "figures"
    options = [f"output={target}", f"report={figures}", "per_class=true"]
    assert main([f"checkpoint={run_dir}", "format=FP8_E5M2", *options]) == 0
    shown = capsys.readouterr().out
    assert not (target / "quantization.json").exists()
    from vitfast.config.data_schema import EvaluateDataOptions
    from vitfast.data import build_dataset
    from vitfast.evaluation.checkpoint_data import data_of_checkpoint

    trained = load_trained_model(str(target), device=CPU)
    data = build_dataset(data_of_checkpoint(trained, EvaluateDataOptions()), "test", seed=0)
    labels = [data[index][1] for index in range(len(data))]
    with torch.no_grad():
        answers = trained.model(torch.stack([data[index][0] for index in range(len(data))])).argmax(1).tolist()
    expected = classification_report(labels, answers, output_dict=True, zero_division=0)
    rows = {row["class"]: row for row in report_of(figures)["per_class"]}
    names = {**{name: name for name in trained.class_names}}
    names |= {"mean of the classes": "macro avg", "mean of the images": "weighted avg"}
    for ours, theirs in names.items():
        for figure, name in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
            assert rows[ours][figure] == pytest.approx(expected[theirs][name])
        assert rows[ours]["n"] == expected[theirs]["support"]
    assert re.search(r"^mean of the images +360 ", shown, re.MULTILINE)


def test_a_run_that_was_trained_for_a_format_says_it_itself(aware_dir, tmp_path, capsys):
    for options in ([], ["format=FP16_16", "quantized_ckpt=true"]):
        target = tmp_path / f"q{len(options)}"
        assert main([f"checkpoint={aware_dir}", f"output={target}", *options]) == 0
        assert "FP16_16, converted" in capsys.readouterr().out
    figures = report_of(target)
    last = [json.loads(line) for line in (aware_dir / "metrics.jsonl").read_text().splitlines()][-1]
    assert figures["quantized"]["top1"] == pytest.approx(last["top1"], abs=0.01)  # gammas are rounded, too
    assert figures["float32"]["loss"] != figures["quantized"]["loss"]


def test_a_weights_file_of_another_system(tmp_path, capsys):
    timm = pytest.importorskip("timm")
    for split in ("train", "test"):
        for label, name in enumerate(("dark", "bright")):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for index in range(3):
                Image.new("RGB", (32, 32), (40 + 150 * label + index,) * 3).save(folder / f"{index}.png")
    model = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32, num_classes=2)
    torch.save(model.state_dict(), tmp_path / "theirs.pth")
    arguments = [f"checkpoint={tmp_path / 'theirs.pth'}", "model=vit_tiny_patch16_224", "format=INT8"]
    assert main(arguments) == 2
    assert "names no classes: give data.dataset=image_folder data.root" in capsys.readouterr().err
    data = ["data.dataset=image_folder", f"data.root={tmp_path / 'data'}", "data.workers=0"]
    code = main([*arguments, *data])
    shown = capsys.readouterr()
    assert code == 2, shown.out
    assert "depth" in shown.err  # the name means twelve blocks; a model of one has no name
    model = timm.create_model("vit_tiny_patch16_224", img_size=224, num_classes=2)
    torch.save(model.state_dict(), tmp_path / "theirs.pth")
    assert main([*arguments, *data, "data.mean=[0.5,0.5,0.5]", "data.std=[0.5,0.5,0.5]"]) == 0
    target = tmp_path / "theirs_int8"
    assert report_of(target)["bytes"][1] < 0.35 * report_of(target)["bytes"][0]
    capsys.readouterr()
    assert evaluate([f"checkpoint={target}", *data, "output=json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == report_of(target)["quantized"]["top1"]
    assert predict([f"checkpoint={target}", f"images={tmp_path / 'data' / 'test'}", "output=jsonl"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["format=FP12"], "format=FP12: there is no format 'FP12'"),
        (["format=fp16-32"], "did you mean FP16_32?"),
        ([], "format=… is missing"),
        (["format=FP16_32", "quantized_ckpt=true"], "quantized_ckpt=True, but"),
        (["format=FP16_32", "split=train", "data.dataset=image_folder"], "needs"),
        (["format=TF32", "overrides=[tail=INT8]"], "no module is called 'tail'"),
        (["numerics=qtorch"], "numerics requires format, which is not given"),
    ],
)
def test_errors_are_raised_before_evaluation(run_dir, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.setattr("vitfast.commands.quantize.evaluate_model", lambda *_, **__: pytest.fail("evaluated"))
    capsys.readouterr()
    assert main([f"checkpoint={run_dir}", f"output={tmp_path / 'q'}", *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "q").exists()


def test_quantized_or_hooked_models_are_refused(run_dir, aware_dir, tmp_path, capsys):
    target = tmp_path / "q"
    assert main([f"checkpoint={run_dir}", "format=INT8", f"output={target}"]) == 0
    capsys.readouterr()
    assert main([f"checkpoint={target}", "format=FP16_32"]) == 2
    assert "is already quantized (INT8, converted)" in capsys.readouterr().err
    assert main([f"checkpoint={aware_dir}", "format=INT8"]) == 2
    assert "the run was trained for FP16_16, prepared; leave out format" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    assert main([f"checkpoint={run_dir}", "format=INT8", f"output={tmp_path / 'full'}"]) == 2
    assert "exists and is not a quantized checkpoint" in capsys.readouterr().err
    assert main([f"checkpoint={tmp_path / 'nowhere'}", "format=INT8"]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_a_damaged_file_is_refused(run_dir, tmp_path, capsys):
    target = tmp_path / "q"
    assert main([f"checkpoint={run_dir}", "format=INT8", f"output={target}"]) == 0
    file = target / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    capsys.readouterr()
    assert evaluate([f"checkpoint={target}"]) == 2
    assert "model.safetensors is damaged" in capsys.readouterr().err


def test_the_weights_of_a_quantized_checkpoint_begin_a_float32_model(run_dir, tmp_path):
    target = tmp_path / "q"
    assert main([f"checkpoint={run_dir}", "format=INT8", f"output={target}"]) == 0
    model, quantized = vitfast.create_model(checkpoint=target).eval(), load_trained_model(str(target), device=CPU).model
    images = torch.randn(4, 1, 8, 8)
    assert vitfast.quantization_record(model) is None
    for key, tensor in quantized.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key
    with vitfast.disable_fake_quantize(quantized):
        torch.testing.assert_close(model(images), quantized(images))
    shutil.rmtree(target)
