"""``python -m vitfast.embed``, and ``python -m vitfast.predict`` with ``target=FOLDER``."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitfast
from support.subprocesses import run_python
from vitfast.data import eval_transform, load_image
from vitfast.embed import main
from vitfast.evaluation.features import extract_features
from vitfast.evaluation.row_functions import Embedder
from vitfast.evaluation.shards import part_files, read_rows
from vitfast.predict import main as predict
from vitfast.runs.trained_model import TrainedModel

pytest.importorskip("pyarrow")
SETTINGS = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "crop_pct": 0.875, "interpolation": "bicubic"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Options of a small model with random weights."""
    torch.manual_seed(0)
    model = vitfast.create_model("vit_mini_patch4_32", num_classes=7).eval()
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(model.state_dict(), path)
    return model, [f"checkpoint={path}", "model=vit_mini_patch4_32"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Thirteen images, of which two cannot be read."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for number in range(11):
        colours = Image.fromarray(random.integers(0, 255, (6, 6, 3), dtype=np.uint8))
        colours.resize((50 - number, 40 + number), Image.Resampling.BICUBIC).save(folder / f"{number:02}.png")
    (folder / "05_text.jpg").write_text("no image")
    (folder / "07_empty.png").touch()
    return folder


def read_all(folder: Path, *columns: str) -> dict[str, list]:
    parts = [read_rows(file, columns) for file in part_files(folder)]
    return {name: [value for part in parts for value in part[name]] for name in columns}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def cosine(one: np.ndarray, two: np.ndarray) -> float:
    return float(one @ two / np.linalg.norm(one) / np.linalg.norm(two))


def source_features(model, paths) -> torch.Tensor:
    transform = eval_transform(32, 3, resize="short_side", **SETTINGS)
    images = torch.stack([transform(load_image(path)) for path in paths])
    found, _ = extract_features(model, [(images, torch.zeros(len(paths)))], ["lastCLS"], device=torch.device("cpu"))
    return found["lastCLS"]


def test_every_image_is_a_row_with_the_models_embedding(weights, photos, tmp_path, capsys):
    model, options = weights
    assert main([*options, f"images={photos}", f"output={tmp_path}", "shard_size=5", "batch_size=3"]) == 0
    assert [file.name for file in part_files(tmp_path)] == [f"part-0000{number}.parquet" for number in range(3)]
    rows = read_all(tmp_path, "path", "sha256", "embedding", "error")
    assert rows["path"] == sorted(str(path) for path in photos.iterdir())
    assert rows["sha256"] == [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in rows["path"]]
    bad = [place for place, error in enumerate(rows["error"]) if error is not None]
    assert [Path(rows["path"][place]).name for place in bad] == ["05_text.jpg", "07_empty.png"]
    assert "cannot be decoded" in rows["error"][bad[0]]
    assert [place for place, value in enumerate(rows["embedding"]) if value is None] == bad
    good = [path for path, error in zip(rows["path"], rows["error"], strict=True) if error is None]
    found = np.stack([value for value in rows["embedding"] if value is not None])
    for one, two in zip(found, source_features(model, good).numpy(), strict=True):
        assert cosine(one, two) > 0.9999  # PyTorch and Pillow resize to pixels that differ by up to 2 of 255
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 4
    assert shown[-1].startswith("13 images in 3 files of ")
    assert shown[-1].endswith("2 unreadable (column error)")


@pytest.mark.parametrize("format", ["jsonl", "npy"])
def test_the_other_formats_hold_the_same(weights, photos, tmp_path, format):
    _, options = weights
    for name, kind in (("a", "parquet"), ("b", format)):
        arguments = [*options, f"images={photos}", f"output={tmp_path / name}", f"format={kind}", "shard_size=8"]
        assert main([*arguments, "normalize=true"]) == 0
    expected, found = (read_all(tmp_path / name, "path", "sha256", "embedding", "error") for name in ("a", "b"))
    vectors, other = expected.pop("embedding"), found.pop("embedding")
    assert found == expected
    for one, two in zip(vectors, other, strict=True):
        if one is None:
            assert two is None or not two.any()  # zero in an array, which has no nulls
        else:
            np.testing.assert_array_equal(np.float32(two), one)
            assert np.linalg.norm(one) == pytest.approx(1)
    if format == "npy":
        assert np.load(tmp_path / "b" / "img_emb" / "img_emb_00001.npy").shape == (5, 192)


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_files(weights, photos, tmp_path):
    _, options = weights
    arguments = [*options, f"images={photos}", "shard_size=4", "batch_size=2", "threads=1"]
    killed = run_python("-m", "support.kill_points", *arguments, f"output={tmp_path / 'killed'}")
    assert killed.returncode == 0, killed.stderr
    assert killed.stdout.count("killed before") == 5
    assert main([*arguments, f"output={tmp_path / 'whole'}"]) == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert len(read_all(tmp_path / "whole", "path")["path"]) == 13


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "mode"), [((90, 60), "RGB"), ((33, 70), "RGB"), ((40, 40), "L")])
def test_pixels_are_those_of_the_evaluation_transform(interpolation, size, mode):
    """Up to the order of rounding: by 2 of 255, and nearest neighbours exactly."""
    channels = len(mode) if mode == "RGB" else 1
    torch.manual_seed(0)
    model = vitfast.create_model("vit_mini_patch4_32", num_classes=0, in_chans=channels)
    data = {"img_size": 32, "in_chans": channels, "mean": [0.0], "std": [1.0], "crop_pct": 0.875}
    data |= {"interpolation": interpolation, "resize": "short_side"}
    embedder = Embedder(TrainedModel(model.eval(), Path(), {"model": {}, "data": data}, "model"))
    image = Image.linear_gradient("L").rotate(30).resize(size).convert(mode)
    found = embedder.fit(image)
    assert found.dtype == torch.uint8
    difference = (found / 255 - eval_transform(**data)(image)).abs() * 255
    assert difference.max() <= (1e-3 if interpolation == "nearest" else 2.001)
    assert (difference > 0.5).float().mean() < 0.1


def test_complete_shards_are_not_computed_again(weights, photos, tmp_path, capsys):
    _, options = weights
    arguments = [*options, f"images={photos}", f"output={tmp_path}", "shard_size=5"]
    assert main(arguments) == 0
    before = {file: file.stat().st_mtime_ns for file in part_files(tmp_path)}
    part_files(tmp_path)[1].unlink()
    capsys.readouterr()
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "part-00001.parquet  5 images" in shown
    assert "5 of them computed now" in shown
    assert [file for file, time in before.items() if file.stat().st_mtime_ns != time] == [
        tmp_path / "part-00001.parquet"
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["shard_size=6"], "shard_size is 5, now 6"),
        (["precision=bf16"], "precision is fp32, now bf16"),
        (["format=jsonl"], "format is parquet, now jsonl"),
        (["images=FEWER"], "part-00000.parquet holds other images"),
        (["images=FIRST"], "part-00001.parquet is left from a larger collection"),
    ],
)
def test_other_options_or_images_need_another_folder(weights, photos, tmp_path, capsys, change, message):
    _, options = weights
    arguments = [*options, f"images={photos}", f"output={tmp_path / 'out'}", "shard_size=5"]
    assert main(arguments) == 0
    paths = sorted(map(str, photos.iterdir()))
    change = [one.replace("FEWER", ",".join(paths[1:])).replace("FIRST", ",".join(paths[:5])) for one in change]
    before = contents(tmp_path / "out")
    assert main([*arguments, *change]) == 2
    assert message in capsys.readouterr().err
    assert contents(tmp_path / "out") == before


def test_a_model_that_is_not_recognised_embeds_the_input_of_its_head(photos, tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    torch.save(timm.create_model("resnet10t", num_classes=5).state_dict(), tmp_path / "weights.pth")
    options = [f"checkpoint={tmp_path / 'weights.pth'}", "model=timm/resnet10t", f"images={photos / '00.png'}"]
    assert main([*options, f"output={tmp_path / 'out'}"]) == 0
    (found,) = read_all(tmp_path / "out", "embedding")["embedding"]
    model = timm.create_model("resnet10t", num_classes=5).eval()
    model.load_state_dict(torch.load(tmp_path / "weights.pth"))
    image = vitfast.preprocessing(model)(load_image(photos / "00.png"))
    expected = model.forward_head(model.forward_features(image[None]), pre_logits=True)[0]
    np.testing.assert_allclose(found, expected.detach(), atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("normalizes", [False, True])
def test_a_vit_file_is_a_checkpoint(weights, photos, tmp_path, capsys, normalizes, precision):
    """The results are those of the source, whose images it normalizes or not, in the file's precision."""
    source, options = weights
    model = vitfast.create_model("vit_mini_patch4_32", num_classes=7)
    model.load_state_dict(source.state_dict())
    model.class_names = list("abcdefg")
    model.pretrained_cfg = {**SETTINGS, "input_size": (3, 32, 32)}
    mean_std = {name: SETTINGS[name] for name in ("mean", "std") if normalizes}
    path = tmp_path / "model.vit"
    vitfast.export(vitfast.accelerate(model, precision, **mean_std), path)
    for name, given in (("a", [*options, f"precision={precision}"]), ("b", [f"checkpoint={path}"])):
        assert main([*given, f"images={photos}", f"output={tmp_path / name}"]) == 0
    expected, found = (read_all(tmp_path / name, "path", "embedding", "error") for name in ("a", "b"))
    vectors, others = expected.pop("embedding"), found.pop("embedding")
    assert found == expected
    # int8 folds the normalization into the weights of the patch embedding before it rounds them
    least = 0.99 if (precision, normalizes) == ("int8", False) else 0.999999
    for one, two in zip(vectors, others, strict=True):
        assert (one is None) == (two is None)
        if one is not None:
            assert cosine(one, two) > least
    assert predict([f"checkpoint={path}", f"images={photos}", f"target={tmp_path / 'c'}"]) == 0
    classes = [row for row in read_all(tmp_path / "c", "classes")["classes"] if row is not None]
    assert {name for row in classes for name in row} <= set("abcdefg")
    if precision == "fp32":
        capsys.readouterr()
        assert predict([f"checkpoint={path}", f"images={photos}", "output=jsonl"]) == 1
        printed = [json.loads(line)["classes"] for line in capsys.readouterr().out.splitlines()]
        assert printed == classes
        assert main([f"checkpoint={path}", f"images={photos}", f"output={tmp_path / 'd'}", "precision=bf16"]) == 0
        assert json.loads((tmp_path / "d" / "shards.json").read_text())["precision"] == "bf16"


def test_a_model_of_hugging_face_by_its_folder(photos, tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 2}
    config = transformers.CLIPVisionConfig(**sizes, image_size=32, patch_size=8, projection_dim=24)
    torch.manual_seed(0)
    text = transformers.CLIPTextConfig(**sizes, vocab_size=50)
    model = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text.to_dict(), vision_config=config.to_dict(), projection_dim=24)
    )
    model.save_pretrained(tmp_path / "clip")
    size = {"height": 32, "width": 32}
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size)
    processor.save_pretrained(tmp_path / "clip")
    assert main([f"model={tmp_path / 'clip'}", f"images={photos}", f"output={tmp_path / 'out'}"]) == 0
    found = read_all(tmp_path / "out", "embedding")["embedding"]
    pixels = processor(images=[load_image(photos / "00.png")], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model.eval().get_image_features(pixels)
    expected = getattr(expected, "pooler_output", expected)[0]
    assert found[0].shape == (24,)
    np.testing.assert_allclose(found[0], expected, atol=2e-3)


def test_predictions_are_written_in_shards(weights, photos, tmp_path, capsys):
    _, options = weights
    arguments = [*options, f"images={photos}", "top=2"]
    assert predict([*arguments, "output=jsonl"]) == 1
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert predict([*arguments, f"target={tmp_path}", "shard_size=6"]) == 0
    rows = read_all(tmp_path, "path", "classes", "probabilities", "error")
    written = [row for row in zip(*rows.values(), strict=True) if row[3] is None]
    assert len(rows["path"]) == len(written) + 2 == 13
    for line, (path, classes, probabilities, _) in zip(printed, written, strict=True):
        assert (line["path"], line["classes"]) == (path, classes)
        assert line["probabilities"] == pytest.approx(probabilities, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["images=PHOTOS", "output=OUT"], "checkpoint=… is missing"),
        (["WEIGHTS", "images=nowhere", "output=OUT"], "images=nowhere does not exist"),
        (["WEIGHTS", "images=PHOTOS", "output=PHOTOS"], "holds files, but no shards.json"),
        (["WEIGHTS", "images=PHOTOS", "output=PHOTOS/00.png"], "cannot be written"),
        (["WEIGHTS", "images=PHOTOS", "output=OUT", "precision=fp8"], "precision='fp8' is not supported on cpu"),
        (["model=NOWHERE/theirs", "images=PHOTOS", "output=OUT"], "cannot be loaded by transformers"),
        (
            ["checkpoint=FILE.vit", "model=vit_mini_patch4_32", "images=PHOTOS", "output=OUT"],
            "model=vit_mini_patch4_32 is for weights files, and checkpoint=FILE.vit records its model",
        ),
    ],
)
def test_a_mistake_is_one_line_and_code_2(weights, photos, tmp_path, capsys, arguments, message):
    _, options = weights
    (tmp_path / "photos").mkdir()
    for name in ("00.png", "part-0.png"):
        (tmp_path / "photos" / name).write_bytes((photos / "00.png").read_bytes())
    given = [one for argument in arguments for one in (options if argument == "WEIGHTS" else [argument])]
    for name in ("PHOTOS", "OUT", "NOWHERE"):
        given = [one.replace(name, str(tmp_path / name.lower())) for one in given]
    assert main(given) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert message in shown
