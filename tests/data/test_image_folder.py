"""Image folders: classes and files, and errors for other layouts."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from vitfast.config import DataConfig
from vitfast.data import available_splits, build_dataset, build_loader
from vitfast.errors import UserError


def folder(root: Path, **options: object) -> DataConfig:
    return DataConfig(dataset="image_folder", root=str(root), img_size=32, **options)  # type: ignore[arg-type]


def test_classes_and_files_are_in_alphabetical_order(make_folder) -> None:
    root = make_folder({"train": {"dog": 2, "cat": 3, "ant": 1}, "test": {"cat": 1, "dog": 1, "ant": 1}})
    for name, picture in (("y", 1), ("x", 0), ("z", 2)):
        (root / f"train/dog/{name}").mkdir()
        shutil.copy(root / f"train/cat/{picture:03d}.png", root / f"train/dog/{name}/000.PNG")
    (root / "train/dog/notes.txt").write_text("no picture")
    (root / "train/dog/._000.png").write_text("a hidden file of another system")
    (root / "train/.cache").mkdir()

    dataset = build_dataset(folder(root), "train", seed=0)

    assert dataset.class_names == ["ant", "cat", "dog"]
    assert [dataset[index][1] for index in range(len(dataset))] == [0, 1, 1, 1, 2, 2, 2, 2, 2]
    for picture in range(3):
        assert torch.equal(dataset[6 + picture][0], dataset[1 + picture][0])
    assert available_splits(folder(root)) == ["train", "test"]


@pytest.mark.parametrize("links", [{"cat/up": ".."}, {"cat/self": "."}, {"cat/d": "../dog", "dog/c": "../cat"}])
def test_a_link_to_a_folder_that_contains_it_is_refused(make_folder, monkeypatch, links: dict[str, str]) -> None:
    """It would repeat all images in it many times."""
    root = make_folder({"train": {"cat": 1, "dog": 1}})
    for link, target in links.items():
        (root / "train" / link).symlink_to(target)
    monkeypatch.chdir(root / "train")
    with pytest.raises(UserError, match=r"cat/.* is a link to .*, which contains it; remove the link"):
        build_dataset(folder(Path("..")), "train", seed=0)


def test_a_link_to_another_folder_is_followed(make_folder) -> None:
    root = make_folder({"train": {"cat": 1, "dog": 2}})
    (root / "train/cat/more").symlink_to("../dog")
    assert len(build_dataset(folder(root), "train", seed=0)) == 5


def test_defaults_of_a_folder(make_folder) -> None:
    root = make_folder({"val": {"cat": 1}}, size=(40, 60))
    dataset = build_dataset(DataConfig(dataset="image_folder", root=str(root)), "val", seed=0)

    assert (dataset.in_chans, dataset.img_size, dataset.crop_pct) == (3, 224, 0.875)
    assert dataset.mean == [0.485, 0.456, 0.406]
    assert dataset[0][0].shape == (3, 224, 224)


def test_one_channel_and_own_statistics(make_folder) -> None:
    root = make_folder({"val": {"cat": 1}})
    grey = build_dataset(folder(root, in_chans=1, mean=[0.0], std=[1.0], crop_pct=1.0), "val", seed=0)

    image = grey[0][0]
    assert image.shape == (1, 32, 32)
    assert 0 <= image.min() < 0.3
    assert 0.7 < image.max() <= 1
    assert len(build_dataset(folder(root, in_chans=1), "val", seed=0).mean) == 1
    with pytest.raises(UserError, match=r"data\.mean has 3 values, but the images have 1 channels"):
        build_dataset(folder(root, in_chans=1, mean=[0.0] * 3), "val", seed=0)


def test_home_is_expanded(make_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder({"val": {"cat": 1}})
    monkeypatch.setenv("HOME", str(root.parent))

    assert available_splits(folder(Path("~") / root.name)) == ["val"]
    assert len(build_dataset(folder(Path("~") / root.name), "val", seed=0)) == 1


def test_names_that_are_not_ascii(make_folder) -> None:
    root = make_folder({"val": {"Käse": 1, "猫": 1}})
    dataset = build_dataset(folder(root), "val", seed=0)

    assert dataset.class_names == ["Käse", "猫"]
    assert dataset[1][0].shape == (3, 32, 32)


def test_missing_root(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.root=.*nowhere does not exist; give the folder that contains train"):
        available_splits(folder(tmp_path / "nowhere"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"data\.root=.*file is a file, not a folder"):
        build_dataset(folder(tmp_path / "file"), "train", seed=0)


def test_missing_split(make_folder, tmp_path: Path) -> None:
    root = make_folder({"train": {"cat": 1}, "test": {"cat": 1}})
    with pytest.raises(UserError, match="has no folder 'val'; it has train, test"):
        build_dataset(folder(root), "val", seed=0)
    with pytest.raises(UserError, match=r"none of the folders train, val, test \(it contains 000\.png\)"):
        available_splits(folder(root / "train" / "cat"))
    with pytest.raises(UserError, match="no split 'validation'; allowed: train, val, test"):
        build_dataset(folder(root), "validation", seed=0)


def test_class_folders_without_splits(make_folder) -> None:
    root = make_folder({"train": {"cat": 4, "dog": 2}}) / "train"
    assert available_splits(folder(root)) == ["train"]
    divided = dataclasses.replace(folder(root), val_share=0.5)
    assert available_splits(divided) == ["train", "val"]
    whole = build_dataset(folder(root), "train", seed=0)
    train, val = (build_dataset(divided, split, seed=0) for split in ("train", "val"))
    assert (len(whole), len(train), len(val)) == (6, 3, 3)
    assert whole.class_names == val.class_names == ["cat", "dog"]


def test_files_that_are_left_out_are_counted(make_folder) -> None:
    root = make_folder({"train": {"cat": 2}})
    for name in ("a.txt", "b.TXT", "picture", ".hidden"):
        (root / "train/cat" / name).touch()
    (root / "train/cat/000.png").rename(root / "train/cat/000.GIF")
    with pytest.warns(UserWarning, match=r"train: 3 files are left out, .* \(2 \.txt, 1 without extension\)"):
        assert len(build_dataset(folder(root), "train", seed=0)) == 2


def test_split_without_classes(make_folder) -> None:
    root = make_folder({"train": {"cat": 1}})
    (root / "val").mkdir()
    shutil.copy(root / "train/cat/000.png", root / "val/000.png")

    with pytest.raises(UserError, match=r"val has no class folders; images must be in .*val/CLASS/"):
        build_dataset(folder(root), "val", seed=0)


def test_empty_class(make_folder) -> None:
    root = make_folder({"train": {"cat": 1, "dog": 1}})
    (root / "train/dog/000.png").rename(root / "train/dog/000.txt")

    with pytest.raises(UserError, match=r"class folder .*train/dog has no images \(\.jpg.*remove the folder"):
        build_dataset(folder(root), "train", seed=0)


def test_classes_of_the_splits_must_agree(make_folder) -> None:
    root = make_folder({"train": {"cat": 1, "dog": 1}, "val": {"cat": 1, "cow": 1}})

    with pytest.raises(UserError) as error:
        build_dataset(folder(root), "train", seed=0)
    assert f"only {root}/train has dog" in str(error.value)
    assert f"only {root}/val has cow" in str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_undecodable_image_is_named_from_a_worker_too(make_folder, workers: int) -> None:
    root = make_folder({"train": {"cat": 4}})
    bad = root / "train/cat/002.png"
    bad.write_text("no picture")
    dataset = build_dataset(folder(root), "train", seed=0)
    loader = build_loader(dataset, batch_size=2, workers=workers, seed=0, epoch=0, shuffle=False)

    batches = iter(loader)
    assert next(batches)[0].shape == (2, 3, 32, 32)
    with pytest.raises(UserError) as error:
        next(batches)
    assert str(error.value).startswith(f"{bad} cannot be decoded as an image: its content is none of the formats")
    assert "Traceback" not in str(error.value)


def test_options_are_checked_without_the_command_line() -> None:
    with pytest.raises(UserError, match=r"data\.interpolation=cubic is not allowed"):
        build_dataset(DataConfig(interpolation="cubic"), "train", seed=0)
    with pytest.raises(UserError, match=r"data\.dataset=image_folder needs data\.root=FOLDER"):
        available_splits(DataConfig(dataset="image_folder"))
