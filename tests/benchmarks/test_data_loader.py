from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from support.scripts import load_script
from vitfast.benchmarking.table import relative_l2
from vitfast.config import DataConfig, load_options
from vitfast.data import build_dataset
from vitfast.errors import UserError

data_loader = load_script("data_loader")


@pytest.fixture
def root(tmp_path):
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for index in range(3):
                pixels = random.integers(0, 256, (50, 40 + index, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "images"


def table_of(root, **changes):
    (table,) = data_loader.list_tables(
        data_loader.LoaderOptions(str(root), img_size=32, batch=2, workers=[0], **changes)
    )
    return table


def test_both_loaders_read_the_same_images(root):
    found = table_of(root, images=5)
    own = found.cases()[0]
    assert relative_l2(own.output(), found.reference) < 1e-5
    assert own.output().numel() == 2 * 3 * 32 * 32 + 2
    assert found.images == 5


def test_a_pass_has_as_many_images_as_it_says(root, monkeypatch):
    read = []
    monkeypatch.setattr(data_loader, "build_loader", counting(data_loader.build_loader, read))
    monkeypatch.setattr(data_loader, "DataLoader", counting(data_loader.DataLoader, read))
    cases = table_of(root, images=5).cases()
    read.clear()
    for case in cases:
        case.run()
    assert read == [2, 2, 1, 2, 2, 1]


def test_random_images_are_not_compared(root):
    found = table_of(root, split="train")
    cases = found.cases()
    assert found.reference is None
    assert found.images == 6
    for case in cases:
        assert case.output is None
        case.run()


def test_both_loaders_make_the_same_crops(root):
    """Their random numbers differ, their sizes do not."""
    options = {"split": "train", "num_crops": [2, 1], "size_crops": [32, 16]}
    found = table_of(root, **options)
    images = build_dataset(DataConfig(dataset="image_folder", root=str(root)), "train", seed=0)
    other = data_loader.torchvision_dataset(data_loader.LoaderOptions(str(root), **options), images)
    assert [tuple(crop.shape) for crop in other[0][0]] == [(3, 32, 32), (3, 32, 32), (3, 16, 16)]
    assert "2 x 32 x 32 and 1 x 16 x 16" in found.title
    for case in found.cases():
        case.run()
    with pytest.raises(UserError, match="num_crops needs split=train, and size_crops with as many sizes"):
        table_of(root, split="train", num_crops=[2], size_crops=[])


@pytest.mark.filterwarnings("ignore:the machine is busy")
def test_the_script_prints_a_table_for_each_number_of_workers(root, capsys):
    arguments = [f"root={root}", "workers=0,1", "img_size=32", "batch=4", "seconds=0.01"]
    assert data_loader.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "6 images of val, 32 x 32, 0 workers" in printed
    assert "6 images of val, 32 x 32, 1 workers" in printed
    assert str(root) not in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "root=… is missing"),
        (["root=x", "workers=-1"], r"workers=\[-1\]"),
        (["root=x", "json=a.txt"], "json=a.txt"),
    ],
)
def test_mistakes_are_reported(arguments, message):
    with pytest.raises(UserError, match=message):
        load_options(data_loader.LoaderOptions, arguments, "benchmarks/data_loader.py")


def test_a_missing_folder_is_reported(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        data_loader.main([f"root={tmp_path / 'nowhere'}"])


def counting(build, read):
    def build_counting(*arguments, **options):
        for images, labels in build(*arguments, **options):
            read.append(len(images))
            yield images, labels

    return build_counting
