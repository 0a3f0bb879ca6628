"""``python -m vitfast.predict``."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import vitfast
from vitfast.config import DataConfig
from vitfast.data import build_dataset, eval_transform, load_image
from vitfast.evaluate import main as evaluate
from vitfast.predict import main
from vitfast.train import main as train


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    options = ["model.fields.embed_dim=32", "model.fields.depth=1", "schedule.epochs=6", "schedule.warmup_epochs=1"]
    options += ["model.name=vit_nano_patch2_8", "data.img_size=8", "model.fields.patch_size=4"]
    options += ["data.augment.affine_degrees=0", "data.augment.affine_translate=0"]
    assert train([*options, "data.batch_size=64", "optim.lr=0.01", f"run_dir={path}"]) == 0
    return path


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The first test images as files of several kinds and sizes; the name begins with the label."""
    folder = tmp_path_factory.mktemp("digits")
    dataset = build_dataset(DataConfig(), "test", seed=0)
    (folder / "below").mkdir()
    for index in range(0, 360, 9):
        image, label = dataset[index]
        pixels = (image[0] * dataset.std[0] + dataset.mean[0]).mul(255).round().clamp(0, 255).numpy().astype(np.uint8)
        picture = Image.fromarray(pixels)
        if index % 2:
            picture = picture.convert("RGB")
        picture.save(folder / ("below" if index % 3 else ".") / f"{label}_{index}.png")
    return folder


def predict_lines(capsys, *options: str, code: int = 0) -> list[dict]:
    capsys.readouterr()
    assert main([*options, "output=jsonl"]) == code
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_digits_are_recognised_in_files(run_dir, digits, capsys):
    lines = predict_lines(capsys, f"checkpoint={run_dir}", f"images={digits}", "batch_size=7")
    assert len(lines) == 40
    assert [line["path"] for line in lines] == sorted(line["path"] for line in lines)
    right = sum(line["path"].rsplit("/", 1)[1][0] == line["classes"][0] for line in lines)
    known = next(
        json.loads(line) for line in reversed((run_dir / "metrics.jsonl").read_text().splitlines()) if "test" in line
    )
    assert known["top1"] > 0.7
    assert right / 40 > known["top1"] - 0.2


def test_probabilities_are_sorted_and_sum_to_one(run_dir, digits, capsys):
    for line in predict_lines(capsys, f"checkpoint={run_dir}", f"images={digits}", "top=99"):
        assert len(line["classes"]) == len(line["probabilities"]) == len(set(line["classes"])) == 10
        assert line["probabilities"] == sorted(line["probabilities"], reverse=True)
        assert sum(line["probabilities"]) == pytest.approx(1, abs=1e-4)


def test_the_batch_does_not_change_the_answer(run_dir, digits, capsys):
    one, all_of_them = (
        predict_lines(capsys, f"checkpoint={run_dir}", f"images={digits}", f"batch_size={size}") for size in (1, 64)
    )
    assert [line["classes"] for line in one] == [line["classes"] for line in all_of_them]
    for first, second in zip(one, all_of_them, strict=True):
        assert first["probabilities"] == pytest.approx(second["probabilities"], abs=1e-4)


def test_any_grey_or_colour_image_is_taken(run_dir, tmp_path, capsys):
    for name, size, mode in (
        ("big.jpg", (640, 480), "RGB"),
        ("tiny.png", (1, 1), "L"),
        ("clear.png", (30, 50), "RGBA"),
    ):
        Image.new(mode, size).save(tmp_path / name)
    assert len(predict_lines(capsys, f"checkpoint={run_dir}", f"images={tmp_path}")) == 3


def test_the_table_lines_up(run_dir, digits, capsys):
    capsys.readouterr()
    assert main([f"checkpoint={run_dir}", f"images={digits}", "top=2"]) == 0
    head, _, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("vit_nano_patch2_8, plain weights of ")
    assert len({line.index("%") for line in lines}) == 1
    assert all(line.count("%") == 2 for line in lines)


def test_a_bad_image_is_named_and_the_others_are_predicted(run_dir, digits, tmp_path, capsys):
    good = next(digits.glob("*.png"))
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "empty.png").touch()
    paths = f"{tmp_path / 'broken.jpg'},{good},{tmp_path / 'empty.png'}"
    capsys.readouterr()
    assert main([f"checkpoint={run_dir}", f"images={paths}", "output=jsonl"]) == 1
    shown = capsys.readouterr()
    assert [json.loads(line)["path"] for line in shown.out.splitlines()] == [str(good)]
    skipped = [line for line in shown.err.splitlines() if line.startswith("skipped: ")]
    assert len(skipped) == 2
    assert "broken.jpg" in skipped[0]
    assert "the file is empty" in skipped[1]
    assert shown.err.splitlines()[-1] == "2 of 3 images could not be read"


def test_a_path_may_contain_a_comma(run_dir, digits, tmp_path, capsys):
    file = tmp_path / "one, two.png"
    Image.open(next(digits.glob("*.png"))).save(file)
    assert [line["path"] for line in predict_lines(capsys, f"checkpoint={run_dir}", f"images={file}")] == [str(file)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["images=x"], "checkpoint=… is missing"),
        (["checkpoint=RUN"], "images=… is missing"),
        (["checkpoint=RUN", "images=nowhere.png"], "images=nowhere.png does not exist"),
        (["checkpoint=RUN", "images=EMPTY"], "the folder holds no image"),
        (["checkpoint=EMPTY", "images=DIGITS"], "contains no checkpoint_NNNNNN folder"),
        (["checkpoint=RUN", "images=.", "top=0"], "top=0"),
        (["checkpoint=RUN", "images=DIGITS", "weights=ema"], "use weights=model"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(run_dir, digits, tmp_path, capsys, options, message):
    paths = {"RUN": str(run_dir), "EMPTY": str(tmp_path), "DIGITS": str(digits)}
    arguments = []
    for option in options:
        key, _, value = option.partition("=")
        arguments.append(f"{key}={paths.get(value, value)}")
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert message in shown.err


def test_a_pattern_names_files(run_dir, digits, capsys):
    pattern = f"{digits}/**/3_*.png"
    found = predict_lines(capsys, f"checkpoint={run_dir}", f"images={pattern}")
    assert [line["path"] for line in found] == sorted(map(str, digits.glob("**/3_*.png")))
    assert main([f"checkpoint={run_dir}", f"images={digits}/*.gif"]) == 2
    assert "/*.gif matches no file" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["vit_mini_patch4_32", "vit_nano_patch2_8"])
def test_a_weights_file(digits, tmp_path, capsys, name):
    """Without a data set, classes are numbers, and the preprocessing is ImageNet's."""
    model = vitfast.create_model(name, num_classes=7).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    picture = next(digits.glob("*.png"))
    options = [f"checkpoint={tmp_path / 'weights.pth'}", f"model={name}", f"images={picture}", "top=7"]
    (line,) = predict_lines(capsys, *options)
    size, channels = model.img_size, model.in_chans
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) if channels == 3 else ([0.449], [0.226])
    transform = eval_transform(size, channels, mean, std, crop_pct=0.875, interpolation="bicubic", resize="short_side")
    with torch.no_grad():
        expected = model(transform(load_image(picture, channels))[None]).softmax(-1)[0]
    assert line["classes"] == [str(label) for label in expected.argsort(descending=True).tolist()]
    assert line["probabilities"][0] == pytest.approx(float(expected.max()), abs=1e-5)


def test_classes_have_the_names_in_a_folder_of_hugging_face(digits, tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
    config = transformers.ViTConfig(**sizes, id2label={0: "beta", 1: "alpha"})
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "theirs")
    options = [f"checkpoint={tmp_path / 'theirs'}", "model=vit_tiny_patch16_224"]
    (line,) = predict_lines(capsys, *options, "top=2", f"images={next(digits.glob('*.png'))}")
    assert sorted(line["classes"]) == ["alpha", "beta"]

    for name in ("alpha", "beta"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(tmp_path / "data" / name / "image.png")
    data = ["data.dataset=image_folder", f"data.root={tmp_path / 'data'}"]
    assert evaluate([*options, *data]) == 2
    assert "in another order, beta, alpha; the data have alpha, beta" in capsys.readouterr().err
