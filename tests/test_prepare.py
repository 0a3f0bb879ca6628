"""``python -m vitfast.prepare`` and its lists, on a small RESISC45."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitfast import prepare, train
from vitfast.config import DataConfig
from vitfast.data import available_splits, build_dataset
from vitfast.errors import UserError

CLASSES = ("airplane", "beach", "sea_ice")


def archive(root: Path, count: int) -> Path:
    """The unpacked archive: empty files stand for images where nobody decodes them."""
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for index in range(1, count + 1):
            (root / name / f"{name}_{index:03d}.jpg").write_bytes(b"image")
    return root


def contents(root: Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def lines(root: Path, split: str) -> list[str]:
    return (root / f"{split}_imagepaths.txt").read_text().splitlines()


def test_the_split_is_myrtles_to_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = archive(tmp_path / "source", 700), tmp_path / "target"
    assert prepare.main([f"source={source}", f"target={target}"]) == 0
    assert "1,467 train, 213 val, 420 test images" in capsys.readouterr().out
    train_lines, val_lines, test_lines = (lines(target, split) for split in ("train", "valid", "test"))
    assert train_lines[488:490] == ["images/airplane/airplane_489.jpg", "images/beach/beach_001.jpg"]
    assert val_lines[0] == "images/airplane/airplane_490.jpg"
    assert test_lines[0] == "images/airplane/airplane_561.jpg"
    assert len({*train_lines, *val_lines, *test_lines}) == 2100
    assert json.loads((target / "label_map.json").read_text()) == {"airplane": 0, "beach": 1, "sea_ice": 2}
    assert all((target / line).read_bytes() == b"image" for line in test_lines)


def test_twice_in_a_row_does_no_harm(tmp_path: Path) -> None:
    source, target = archive(tmp_path / "source", 10), tmp_path / "target"
    options = [f"source={source}", f"target={target}"]
    assert prepare.main(options) == 0
    first = contents(target)
    (target / "images" / "beach" / "beach_003.jpg").unlink()  # as if it had been interrupted
    assert prepare.main(options) == 0
    assert {name: text for name, (text, _) in contents(target).items()} == {
        name: text for name, (text, _) in first.items()
    }
    assert prepare.main([f"source={target}", f"target={target}"]) == 0  # what it made is a source, too


def test_torchgeos_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = archive(tmp_path / "source", 3), tmp_path / "target"
    options = [f"source={source}", f"target={target}", "split=torchgeo"]
    assert prepare.main(options) == 2
    assert "resisc45-train.txt" in capsys.readouterr().err
    for index, split in enumerate(("train", "val", "test"), start=1):
        (source / f"resisc45-{split}.txt").write_text("".join(f"{name}_{index:03d}.jpg\n" for name in CLASSES))
    assert prepare.main(options) == 0
    assert lines(target, "valid") == [f"images/{name}/{name}_002.jpg" for name in CLASSES]
    (source / "resisc45-val.txt").write_text("harbor_001.jpg\n")
    assert prepare.main(options) == 2
    assert "names harbor_001.jpg and 0 more" in capsys.readouterr().err


@pytest.mark.parametrize("made", [False, True])
def test_wrong_source_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str], made: bool) -> None:
    source = tmp_path / "source"
    if made:
        source.mkdir()
    assert prepare.main([f"source={source}", f"target={tmp_path / 'target'}"]) == 2
    assert f"source={source}" in capsys.readouterr().err
    assert not (tmp_path / "target").exists()


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """Ten real pictures a class: 7 to train on, 1 to validate, 2 to test."""
    random = np.random.default_rng(0)
    for number, name in enumerate(CLASSES):
        folder = tmp_path / "source" / name
        folder.mkdir(parents=True)
        for index in range(10):
            pixels = random.integers(80 * number, 80 * number + 40, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}_{index:03d}.png")
    assert prepare.main([f"source={tmp_path / 'source'}", f"target={tmp_path / 'target'}"]) == 0
    return tmp_path / "target"


def test_lists_are_read(prepared: Path) -> None:
    data = DataConfig(dataset="file_list", root=str(prepared), img_size=16)
    assert available_splits(data) == ["train", "val", "test"]
    dataset = build_dataset(data, "test", seed=0)
    assert dataset.class_names == list(CLASSES)
    assert [dataset[index][1] for index in range(len(dataset))] == [0, 0, 1, 1, 2, 2]
    assert dataset.path(2) == str(prepared / "images/beach/beach_008.png")


def test_a_model_learns_from_them(prepared: Path, tmp_path: Path) -> None:
    options = ["data.dataset=file_list", f"data.root={prepared}", "data.img_size=16", "data.batch_size=7"]
    options += ["data.augment.affine_translate=0", "schedule.epochs=2", "schedule.warmup_epochs=1"]
    assert train.main([*options, f"run_dir={tmp_path / 'run'}"]) == 0
    assert (tmp_path / "run" / "curves.png").exists()


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("label_map.json", "{", "label_map.json cannot be read"),
        ("label_map.json", '{"airplane": 0, "beach": 2}', "the numbers 0 to 1, each once"),
        (
            "test_imagepaths.txt",
            "images/beach/beach_008.png\nimages/harbor/1.png\n",
            "line 2: images/harbor/1.png is in the folder",
        ),
        ("test_imagepaths.txt", "\n", "lists no images"),
    ],
)
def test_wrong_list_is_an_error(prepared: Path, file: str, text: str, message: str) -> None:
    (prepared / file).write_text(text)
    with pytest.raises(UserError, match=message):
        build_dataset(DataConfig(dataset="file_list", root=str(prepared)), "test", seed=0)


def test_missing_lists_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has none of train_imagepaths.txt, .* vitfast.prepare"):
        available_splits(DataConfig(dataset="file_list", root=str(tmp_path)))
