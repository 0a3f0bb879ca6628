"""CIFAR in its authors' layout: small archives that the tests make, with checksums of their own."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets

from vitfast.config import DataConfig
from vitfast.data import available_splits, build_dataset
from vitfast.errors import UserError


def write(path: Path, content: dict[str, object]) -> str:
    """Pickles a file as the archives have it; returns its checksum."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both data sets with a few pictures; picture i is filled with 10 i, its label is i."""

    def pictures(first: int, count: int) -> np.ndarray:
        return np.repeat(np.arange(first, first + count, dtype=np.uint8)[:, None] * 10, 3072, axis=1)

    for reader, key, names in (
        (datasets.CIFAR10, "labels", [f"class {i}" for i in range(10)]),
        (datasets.CIFAR100, "fine_labels", [f"fine {i}" for i in range(100)]),
    ):
        folder = tmp_path / reader.base_folder
        for attribute, first in (("train_list", 0), ("test_list", 7)):
            files = []
            for name, _ in getattr(reader, attribute):
                files.append([name, write(folder / name, {"data": pictures(first, 2), key: [first, first + 1]})])
                first += 1
            monkeypatch.setattr(reader, attribute, files)
        meta = dict(reader.meta)
        meta["md5"] = write(folder / meta["filename"], {meta["key"]: names})
        monkeypatch.setattr(reader, "meta", meta)
    return tmp_path


@pytest.mark.parametrize(("name", "train", "classes"), [("cifar10", 10, 10), ("cifar100", 2, 100)])
def test_images_labels_and_names(root: Path, name: str, train: int, classes: int) -> None:
    data = DataConfig(dataset=name, root=str(root), mean=[0.0], std=[1.0])
    assert available_splits(data) == ["train", "test"]
    dataset = build_dataset(data, "train", seed=0)
    assert (len(dataset), len(dataset.class_names), dataset.img_size, dataset.in_chans) == (train, classes, 32, 3)
    test = build_dataset(data, "test", seed=0)
    image, label = test[1]
    assert label == 8
    torch.testing.assert_close(image, torch.full((3, 32, 32), 80 / 255))


def test_one_channel_is_grey(root: Path) -> None:
    dataset = build_dataset(DataConfig(dataset="cifar10", root=str(root), in_chans=1), "test", seed=0)
    assert dataset[0][0].shape == (1, 32, 32)


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_missing_or_damaged_files_are_errors(root: Path, damage: str) -> None:
    file = root / "cifar-10-batches-py" / "data_batch_3"
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes() + b".")  # its pickle would still load
    with pytest.raises(UserError, match=r"contains no intact cifar-10-batches-py.*\n.*data\.download=true"):
        build_dataset(DataConfig(dataset="cifar10", root=str(root)), "train", seed=0)


def test_there_is_no_validation_split(root: Path) -> None:
    with pytest.raises(UserError, match=r"data.dataset=cifar10 has no split 'val'; use one of: train, test"):
        build_dataset(DataConfig(dataset="cifar10", root=str(root)), "val", seed=0)


def test_a_folder_is_needed() -> None:
    with pytest.raises(UserError, match=r"data.dataset=cifar100 needs data.root=FOLDER"):
        build_dataset(DataConfig(dataset="cifar100"), "train", seed=0)
