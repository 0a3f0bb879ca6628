"""A val split made of the train split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitfast.config import DataConfig
from vitfast.data import available_splits, build_dataset
from vitfast.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """20 images of one class and 8 of another to train on, one each to test on; every image has its own grey."""
    for split, counts in (("train", (20, 8)), ("test", (1, 1))):
        for name, count in zip(("cat", "dog"), counts, strict=True):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (4, 4), (index,) * 3).save(tmp_path / split / name / f"{index:02}.png")
    return tmp_path


def options(root: Path, share: float) -> DataConfig:
    return DataConfig(dataset="image_folder", root=str(root), img_size=4, crop_pct=1.0, val_share=share)


def test_every_image_is_in_one_split_and_every_class_in_both(root: Path) -> None:
    data = options(root, 0.25)
    assert available_splits(data) == ["train", "val", "test"]
    parts = {split: build_dataset(data, split, seed=0) for split in ("train", "val")}
    paths = {split: [part.path(index) for index in range(len(part))] for split, part in parts.items()}
    everything = build_dataset(options(root, 0.0), "train", seed=0)
    assert sorted(paths["train"] + paths["val"]) == [everything.path(index) for index in range(28)]
    labels = [parts["val"][index][1] for index in range(len(parts["val"]))]
    assert np.bincount(labels).tolist() == [5, 2]
    assert [Path(path).name for path in paths["val"][:5]] == ["02.png", "06.png", "10.png", "14.png", "18.png"]
    assert parts["train"].augment
    assert not parts["val"].augment


def test_val_split_does_not_depend_on_the_seed(root: Path) -> None:
    data = options(root, 0.1)
    data.mean, data.std = [0.0], [1.0]
    first, second = (build_dataset(data, "val", seed=seed) for seed in (0, 1))
    assert len(first) == len(second) == 3
    for index in range(3):
        assert first.path(index) == second.path(index)
        image, label = first[index]
        assert round(255 * float(image[0, 0, 0])) == int(Path(first.path(index)).stem)
        assert Path(first.path(index)).parent.name == ("cat", "dog")[label]


def test_the_test_split_and_an_own_val_split_stay(root: Path) -> None:
    assert len(build_dataset(options(root, 0.5), "test", seed=0)) == 2
    assert len(build_dataset(DataConfig(val_share=0.5), "val", seed=0)) == 144  # the digits have one
    assert len(build_dataset(DataConfig(val_share=0.5), "train", seed=0)) == 1293


def test_an_empty_split_is_refused(root: Path) -> None:
    with pytest.raises(UserError, match=r"data.val_share=0.01 leaves the val split without an image; .* 28 images"):
        build_dataset(options(root, 0.01), "val", seed=0)
    with pytest.raises(UserError, match="leaves the train split without an image"):
        build_dataset(options(root, 0.99), "train", seed=0)
    with pytest.raises(UserError, match=r"data.val_share=1"):
        available_splits(options(root, 1.0))


def test_a_share_of_each_class_is_a_function_of_the_seed(root: Path) -> None:
    def names(share: float, seed: int = 0, split: str = "train") -> list[str]:
        data = options(root, 0.0)
        data.label_share = share
        dataset = build_dataset(data, split, seed=seed)
        return [str(Path(str(dataset.path(index))).relative_to(root)) for index in range(len(dataset))]

    quarter = names(0.25)
    assert [Path(name).parent.name for name in quarter] == ["cat"] * 5 + ["dog"] * 2
    assert names(0.25) == quarter != names(0.25, seed=1)
    assert set(quarter) < set(names(0.5))
    assert [Path(name).parent.name for name in names(0.01)] == ["cat", "dog"]
    assert len(names(0.01, split="test")) == 2
