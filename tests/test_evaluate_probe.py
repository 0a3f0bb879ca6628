"""``python -m vitfast.evaluate probe=…``."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from PIL import Image

import vitfast
from vitfast.evaluate import main
from vitfast.evaluation.linear_probe import LINEAR_PROTOCOLS


def probe_json(capsys, *options: str) -> dict:
    capsys.readouterr()
    assert main([*options, "output=json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_knn_of_a_run(dvt_run, capsys, tmp_path):
    options = (f"checkpoint={dvt_run}", "probe=knn", f"probing.folder={tmp_path}")
    found = probe_json(capsys, *options)
    assert set(found["knn"]) == {"k20", "k200"}
    assert all(0.2 < accuracy <= 1 for accuracy in found["knn"].values())
    assert (found["train_images"], found["images"], found["split"]) == (1293, 360, "test")
    (picture,) = found["pictures"]
    assert picture == str(tmp_path / "neighbours.png")
    with Image.open(picture) as image:
        assert image.width > 800
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").iterdir()}
    assert sorted(path.name.rpartition("-")[0] for path in files) == ["test-lastCLS", "train-lastCLS"]
    assert probe_json(capsys, *options)["knn"] == found["knn"]
    assert {path: path.stat().st_mtime_ns for path in files} == files


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    """Weights of another number of classes than the data have."""
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    fields = {"embed_dim": 16, "num_heads": 2, "depth": 4, "num_classes": 7}
    vitfast.save_weights(vitfast.create_model("vit_nano_patch2_8", **fields), path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A train split of black and white images and a test split; and folders with one split or one class."""
    folder = tmp_path_factory.mktemp("photos")
    for name, splits, classes in (
        ("both", ("train", "test"), 2),
        ("test", ("test",), 2),
        ("one", ("train", "test"), 1),
    ):
        for split in splits:
            for label in range(classes):
                (folder / name / split / str(label)).mkdir(parents=True)
                for index in range(4):
                    pixels = Image.new("L", (8, 8), 230 * label + 5 * index)
                    pixels.save(folder / name / split / str(label) / f"{index}.png")
    return folder


def options_of(weights_file, photos, folder, *options: str) -> list[str]:
    data = ["data.dataset=image_folder", f"data.root={photos}", "data.mean=0.5", "data.std=0.5", "data.workers=0"]
    return [f"checkpoint={weights_file}", *data, f"probing.folder={folder}", *options]


def test_linear_of_a_weights_file_with_other_classes(weights_file, photos, capsys, tmp_path, monkeypatch):
    for name, protocol in LINEAR_PROTOCOLS.items():
        monkeypatch.setitem(LINEAR_PROTOCOLS, name, replace(protocol, epochs=20))
    found = probe_json(capsys, *options_of(weights_file, photos / "both", tmp_path, "probe=linear"))
    assert set(found["linear"]) == {"original", "vissl"}
    assert all(set(row) == {"lastCLS", "concatCLS4"} for row in found["linear"].values())
    assert found["linear"]["original"]["lastCLS"] == 1
    one = options_of(weights_file, photos / "both", tmp_path, "probe=linear", "probing.layers=concatCLS4")
    assert probe_json(capsys, *one)["linear"]["vissl"] == {"concatCLS4": found["linear"]["vissl"]["concatCLS4"]}


def test_more_neighbours_than_images_is_said(weights_file, photos, capsys, tmp_path):
    assert main(options_of(weights_file, photos / "both", tmp_path, "probe=knn", "output=json")) == 0
    shown = capsys.readouterr()
    assert set(json.loads(shown.out)["knn"]) == {"k20", "k200"}
    assert "warning: k20: the train split has 8 images, fewer than 20: all of them are neighbours" in shown.err
    assert shown.err.count("warning: k200") == 1
    assert main(options_of(weights_file, photos / "both", tmp_path, "probe=knn")) == 0
    assert "probe     knn, fitted to 8 images of train\nsplit     test, 8 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ("both", ["probe=foo"], "probe=foo is not allowed; allowed: one of: knn, linear"),
        ("both", ["probe=knn", "split=train"], "probe=knn learns from the train split; evaluate it on split=test"),
        ("both", ["probe=knn", "accelerate=int8"], "probe=knn evaluates features; leave out accelerate=int8, or probe"),
        ("both", ["probe=knn", "probing.layers=concatCLS4"], "probe=knn compares lastCLS"),
        ("both", ["probe=knn", "probing.folder=/nowhere"], "probing.folder=/nowhere: there is no such folder"),
        ("test", ["probe=knn"], "learns from the train split, but the data have only test"),
        ("one", ["probe=linear"], "the train split has one class, 0; a classifier needs at least two"),
        ("both", ["probe=knn", "split=val"], "split=val does not exist in the data; use one of train, test"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(weights_file, photos, capsys, tmp_path, data, options, message):
    assert main(options_of(weights_file, photos / data, tmp_path, *options)) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""
