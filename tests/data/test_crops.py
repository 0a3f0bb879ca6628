"""Several crops of an image: sizes, scales, repeatability, and batches of them."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image

from vitfast.config import AugmentConfig, load_config
from vitfast.data import build_dataset, build_loader, train_transform
from vitfast.errors import UserError
from vitfast.models.multi_crop import Crops

SWAV = ("task=swav", "data.drop_last=true")
CROPS = ("data.augment.num_crops=[2,3]", "data.augment.size_crops=[12,6]", "data.augment.crop_scales=[0.3,1,0.05,0.3]")
COLOURS = ("data.augment.color_jitter=0.8", "data.augment.hue=0.2", "data.augment.color_jitter_p=0.8")
COLOURS += ("data.augment.gray=0.2", "data.augment.blur=0.5", "data.augment.flip=0.5")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for index in range(10):
        path = root / "train" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    options = [*SWAV, "data.dataset=image_folder", f"data.root={root}", "data.img_size=16", *CROPS, *COLOURS]
    return build_dataset(load_config(options).data, "train", seed=3)


def read_batches(dataset, workers, epoch=1):
    loader = build_loader(dataset, batch_size=4, workers=workers, seed=3, epoch=epoch, shuffle=True)
    return [(images, labels) for images, labels in loader]


def test_a_batch_has_the_crops_of_each_size(dataset):
    batches = read_batches(dataset, workers=0)
    assert [len(images) for images, _ in batches] == [4, 4, 2]
    shapes = [tuple(crop.shape) for crop in batches[0][0].tensors]
    assert shapes == [(4, 3, 12, 12)] * 2 + [(4, 3, 6, 6)] * 3


def test_crops_depend_on_the_epoch_but_not_on_the_workers(dataset):
    def tensors(**options):
        return [crop for images, _ in read_batches(dataset, **options) for crop in images.tensors]

    alone = tensors(workers=0)
    assert all(map(torch.equal, alone, tensors(workers=2)))
    assert not any(map(torch.equal, alone, tensors(workers=0, epoch=2)))


def test_each_crop_of_an_image_differs(dataset):
    crops, _ = dataset.read(0, 0)
    assert not torch.equal(crops[0], crops[1])
    assert not torch.equal(crops[2], crops[3])


def test_shares_of_the_area():
    """A gradient from 0 to 1 shows how much of the width and height a crop has."""
    side = 256
    column = np.arange(side, dtype=np.uint8)
    across = np.stack([*np.meshgrid(column, column), np.zeros((side, side), np.uint8)], axis=2)
    transform = train_transform(AugmentConfig(), 64, 3, [0.0] * 3, [1.0] * 3, "bilinear", crop_scales=(0.05, 0.14))
    torch.manual_seed(0)
    image, areas = Image.fromarray(across), []
    for _ in range(300):
        crop = transform(image) * 255
        # the outermost of 64 pixels are half a pixel inside the crop
        width, height = ((crop[c].max() - crop[c].min()) * 64 / 63 / side for c in (0, 1))
        areas.append(float(width * height))
    assert 0.045 < min(areas) < 0.06
    assert 0.125 < max(areas) < 0.15
    assert sum(areas) / len(areas) == pytest.approx((0.05 + 0.14) / 2, abs=0.006)


@pytest.mark.parametrize("option", ["gray", "blur", "color_jitter_p"])
def test_an_operation_has_its_probability(option):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    options = {"color_jitter": 0.8, "hue": 0.2} if option == "color_jitter_p" else {}
    transform = train_transform(AugmentConfig(**{option: 0.3}, **options), 16, 3, [0.0] * 3, [1.0] * 3, "bilinear")
    plain = train_transform(AugmentConfig(), 16, 3, [0.0] * 3, [1.0] * 3, "bilinear")(Image.fromarray(pixels))
    torch.manual_seed(0)
    results = [transform(Image.fromarray(pixels)) for _ in range(500)]
    changed = [result for result in results if not torch.equal(result, plain)]
    assert len(changed) / len(results) == pytest.approx(0.3, abs=0.06)
    if option == "gray":
        assert all(torch.equal(result[0], result[2]) for result in changed)
    if option == "blur":
        assert all(float(result.std()) < float(plain.std()) for result in changed)


def test_crops_are_split_and_converted_like_a_tensor():
    crops = Crops([torch.arange(5.0).view(5, 1), torch.arange(5.0, 10).view(5, 1)])
    parts = crops.tensor_split(2)
    assert [len(part) for part in parts] == [3, 2]
    assert parts[1].tensors[1].flatten().tolist() == [8, 9]
    assert crops.to(torch.float64).tensors[0].dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["data.augment.num_crops=[2]"], "do not fit together: give as many sizes as numbers of crops"),
        ([*CROPS[:2], "data.augment.crop_scales=[0.3,1]"], "and two scales for each"),
        ([*CROPS[:2], "data.augment.crop_scales=[0.3,0.1,0.2,0.3]"], "the first number must not exceed the second"),
        ([*CROPS, "data.augment.crop_scale=0.5"], "data.augment.crop_scale and data.augment.num_crops exclude"),
    ],
)
def test_errors(options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        load_config([*SWAV, *options])
