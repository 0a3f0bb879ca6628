"""The embedded digits are scikit-learn's, split as the module says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitfast.config import DataConfig
from vitfast.data import available_splits, build_dataset
from vitfast.data import digits as digits_module

SIZES = {"train": 1293, "val": 144, "test": 360}


def test_file_is_made_from_scikit_learns_copy_bit_by_bit() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    shuffled = np.random.RandomState(0).permutation(1797)  # this stream never changes
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    rest = np.delete(by_class, slice(None, None, 5))
    split = np.zeros(1797, np.uint8)
    split[by_class[::5]] = 2
    split[rest[::10]] = 1

    with np.load(digits_module._FILE, allow_pickle=False) as arrays:
        assert set(arrays) == {"images", "labels", "split"}
        assert all(array.dtype == np.uint8 for array in arrays.values())
        np.testing.assert_array_equal(arrays["images"], images.reshape(-1, 8, 8))
        np.testing.assert_array_equal(arrays["labels"], labels)
        np.testing.assert_array_equal(arrays["split"], split)


@pytest.mark.parametrize(("split", "size"), SIZES.items())
def test_splits_are_stratified(split: str, size: int) -> None:
    dataset = build_dataset(DataConfig(), split, seed=0)
    counts = np.bincount([dataset[index][1] for index in range(size)], minlength=10)

    with np.load(digits_module._FILE) as arrays:
        expected = np.bincount(arrays["labels"]) * size / 1797
    assert len(dataset) == size
    assert np.abs(counts - expected).max() < 2


def test_values_are_sixteenths_normalised_by_the_training_images() -> None:
    dataset = build_dataset(DataConfig(), "train", seed=0)
    images = torch.stack([dataset[index][0] for index in range(len(dataset))])
    sixteenths = (images * dataset.std[0] + dataset.mean[0]) * 16

    assert images.shape == (1293, 1, 8, 8)
    assert images.dtype == torch.float32
    torch.testing.assert_close(sixteenths, sixteenths.round(), atol=1e-5, rtol=0)
    assert (sixteenths.min().round(), sixteenths.max().round()) == (0, 16)
    assert abs(images.mean()) < 1e-3
    assert abs(images.std() - 1) < 1e-3


def test_digits_describe_themselves() -> None:
    dataset = build_dataset(DataConfig(), "test", seed=0)

    assert available_splits(DataConfig()) == ["train", "val", "test"]
    assert dataset.class_names == list("0123456789")
    assert (dataset.in_chans, dataset.img_size, dataset.crop_pct) == (1, 8, 1.0)


def test_three_channels_repeat_the_grey_one_and_another_size_resizes() -> None:
    grey = build_dataset(DataConfig(), "val", seed=0)[5][0]
    colour = build_dataset(DataConfig(in_chans=3), "val", seed=0)[5][0]
    large = build_dataset(DataConfig(), "val", seed=0, img_size=16)[5][0]

    torch.testing.assert_close(colour, grey.expand(3, 8, 8), atol=0, rtol=0)
    assert large.shape == (1, 16, 16)
    assert abs(large.mean() - grey.mean()) < 0.05
