"""Guarantees on order, augmentation and workers that bit-exact resume needs."""

from __future__ import annotations

import os
import pickle
import signal

import pytest
import torch

from vitfast.config import AugmentConfig, DataConfig
from vitfast.data import ImageDataset, build_dataset, build_loader
from vitfast.data.digits import Digits

AFFINE = AugmentConfig(affine_degrees=15, affine_translate=0.15, affine_scale=0.1, flip=0.5)


@pytest.fixture
def digits() -> ImageDataset:
    return build_dataset(DataConfig(augment=AFFINE), "train", seed=3)


def batches(dataset: ImageDataset, workers: int = 0, **options: object) -> list[tuple[torch.Tensor, torch.Tensor]]:
    defaults = {"batch_size": 100, "seed": 3, "epoch": 2, "shuffle": True}
    return list(build_loader(dataset, workers=workers, **(defaults | options)))  # type: ignore[arg-type]


def assert_same(
    first: list[tuple[torch.Tensor, torch.Tensor]], second: list[tuple[torch.Tensor, torch.Tensor]]
) -> None:
    assert len(first) == len(second)
    for (images, labels), (other_images, other_labels) in zip(first, second, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


def test_batches(digits: ImageDataset) -> None:
    result = batches(digits)

    assert [len(labels) for _, labels in result] == [100] * 12 + [93]
    assert result[0][0].shape == (100, 1, 8, 8)
    assert result[0][0].dtype == torch.float32
    assert result[0][1].dtype == torch.int64
    assert len(batches(digits, drop_last=True)) == 12
    assert len(build_loader(digits, batch_size=100, workers=0, seed=0, epoch=0, shuffle=True)) == 13


def test_workers_change_nothing(digits: ImageDataset) -> None:
    assert_same(batches(digits, workers=0), batches(digits, workers=2))


def test_workers_change_nothing_for_files(make_folder) -> None:
    root = make_folder({"train": {"cat": 9, "dog": 8}}, size=(40, 36))
    augment = AugmentConfig(crop_scale=0.2, flip=0.5)
    data = DataConfig(dataset="image_folder", root=str(root), img_size=32, augment=augment)
    dataset = build_dataset(data, "train", seed=3)

    assert_same(batches(dataset, workers=0, batch_size=4), batches(dataset, workers=2, batch_size=4))


def test_start_continues_an_epoch(digits: ImageDataset) -> None:
    whole = batches(digits)

    assert_same(whole[5:], batches(digits, start=500))
    assert_same(whole[5:], batches(digits, start=500, workers=2))
    assert batches(digits, start=1293) == []
    for start in (-1, 1294):
        with pytest.raises(ValueError, match=rf"start must be in 0\.\.1293, .* got {start}"):
            batches(digits, start=start)


def test_augmentation_is_a_function_of_seed_epoch_and_index(digits: ImageDataset) -> None:
    def image(seed: int, epoch: int, index: int, draw_before: int = 0) -> torch.Tensor:
        dataset = build_dataset(DataConfig(augment=AFFINE), "train", seed=seed)
        dataset.set_epoch(epoch)
        torch.rand(draw_before)
        for other in range(draw_before):
            dataset[other]
        return dataset[index][0]

    reference = image(3, 2, 7)
    assert torch.equal(reference, image(3, 2, 7, draw_before=5))
    assert not torch.equal(reference, image(4, 2, 7))
    assert not torch.equal(reference, image(3, 3, 7))
    digits.set_epoch(2)
    assert torch.equal(reference, digits[7][0])


def test_images_of_one_epoch_are_augmented_differently(make_folder) -> None:
    root = make_folder({"train": {"cat": 1}})
    for index in range(1, 6):
        (root / f"train/cat/{index:03d}.png").write_bytes((root / "train/cat/000.png").read_bytes())
    augment = AugmentConfig(affine_degrees=40)
    dataset = build_dataset(
        DataConfig(dataset="image_folder", root=str(root), img_size=32, augment=augment), "train", seed=0
    )

    for index in range(1, 6):
        assert not torch.equal(dataset[0][0], dataset[index][0])


class ThreadCount(ImageDataset):
    """Digits whose labels are the number of threads that read them."""

    def read(self, index: int, sample: int) -> tuple[torch.Tensor, int]:
        return super().read(index, sample)[0], torch.get_num_threads()


def test_a_worker_has_one_thread() -> None:
    dataset = ThreadCount(Digits("val"), DataConfig(), augment=False, seed=0)

    assert {int(count) for _, labels in batches(dataset, workers=1) for count in labels} == {1}


@pytest.mark.parametrize("workers", [0, 2])
def test_global_random_numbers_are_left_alone(digits: ImageDataset, workers: int) -> None:
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    batches(digits, workers=workers)

    assert torch.equal(torch.rand(4), expected)


def test_global_seed_changes_nothing(digits: ImageDataset) -> None:
    torch.manual_seed(1)
    first = batches(digits)
    torch.manual_seed(2)

    assert_same(first, batches(digits))


def test_loaders_of_two_epochs_do_not_disturb_each_other(digits: ImageDataset) -> None:
    first = build_loader(digits, batch_size=100, workers=0, seed=3, epoch=2, shuffle=True)
    build_loader(digits, batch_size=100, workers=0, seed=3, epoch=9, shuffle=True)
    digits.set_epoch(11)

    assert_same(list(first), batches(digits, epoch=2))


def test_a_loader_can_be_read_twice(digits: ImageDataset) -> None:
    loader = build_loader(digits, batch_size=100, workers=0, seed=3, epoch=2, shuffle=True)

    assert_same(list(loader), list(loader))


def test_evaluation_reads_every_image_once_in_order() -> None:
    dataset = build_dataset(DataConfig(augment=AFFINE), "test", seed=0)
    result = batches(dataset, shuffle=False)
    images = torch.cat([images for images, _ in result])

    plain = build_dataset(DataConfig(), "test", seed=1)
    assert torch.equal(images, torch.stack([plain[index][0] for index in range(360)]))


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_parts_of_the_ranks_are_the_batches_of_one_process(digits: ImageDataset, world: int, workers: int) -> None:
    options = {"start": 1200, "batch_size": 30}  # the last of the four batches has 3 images
    whole = batches(digits, **options)
    assert [len(labels) for _, labels in whole] == [30, 30, 30, 3]
    parts = [batches(digits, workers, rank=rank, world=world, **options) for rank in range(world)]
    for batch, (images, labels) in enumerate(whole):
        for rank in range(world):
            assert torch.equal(parts[rank][batch][0], images[rank::world])
            assert torch.equal(parts[rank][batch][1], labels[rank::world])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_rank_without_a_part_of_the_last_batch_gets_an_empty_one(digits: ImageDataset, workers: int) -> None:
    images, labels = batches(digits, workers, start=1200, rank=3, world=4, batch_size=90)[-1]
    assert (images.shape, images.dtype) == ((0, 1, 8, 8), torch.float32)
    assert (labels.shape, labels.dtype) == ((0,), torch.int64)


def test_ranks_evaluate_every_image_once() -> None:
    dataset = build_dataset(DataConfig(), "test", seed=0)
    parts = [batches(dataset, shuffle=False, batch_size=64, rank=rank, world=7) for rank in range(7)]
    assert {len(part) for part in parts} == {6}
    read = torch.cat([images for part in parts for images, _ in part])
    every = torch.stack([dataset[index][0] for index in range(360)])
    assert torch.equal(read.flatten(1).sort(0).values, every.flatten(1).sort(0).values)
    assert len(read) == 360


def repeating(repeats: int, **options: float) -> ImageDataset:
    """Digits that are read ``repeats`` times each."""
    return build_dataset(DataConfig(augment=AugmentConfig(repeats=repeats, **options)), "train", seed=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [0, 2])
def test_repeats_of_an_image_follow_each_other_and_are_augmented_differently(workers: int) -> None:
    (plain, labels), *_ = batches(repeating(3), workers, batch_size=99)
    (turned, _), *_ = batches(repeating(3, affine_degrees=40), workers, batch_size=99)
    for first in range(0, 99, 3):
        assert torch.equal(plain[first], plain[first + 1])
        assert torch.equal(plain[first], plain[first + 2])
        assert labels[first : first + 3].unique().numel() == 1
        for one, other in ((0, 1), (0, 2), (1, 2)):
            assert not torch.equal(turned[first + one], turned[first + other])


def test_the_first_repetition_is_augmented_as_without_repeats() -> None:
    once, thrice = repeating(1, affine_degrees=40), repeating(3, affine_degrees=40)
    (images, labels), *_ = batches(once, batch_size=33)
    (repeated, repeated_labels), *_ = batches(thrice, batch_size=99)

    assert torch.equal(repeated[::3], images)
    assert torch.equal(repeated_labels[::3], labels)


def test_repeats_are_of_training_only() -> None:
    data = DataConfig(augment=AugmentConfig(repeats=3))
    measured = build_dataset(data, "train", seed=3, augment=False)
    images = torch.cat([images for images, _ in batches(measured, shuffle=False)])

    assert torch.equal(images, torch.stack([measured[index][0] for index in range(1293)]))


def test_dataset_can_be_pickled(digits: ImageDataset) -> None:
    """Platforms that spawn workers send it to them."""
    copy = pickle.loads(pickle.dumps(digits))

    assert torch.equal(copy[3][0], digits[3][0])


def test_index_outside_is_an_index_error(digits: ImageDataset) -> None:
    for index in (-1, 1293):
        with pytest.raises(IndexError, match=f"image {index} of a data set of 1293"):
            digits[index]


def test_worker_outlives_a_signal_to_the_group(digits: ImageDataset) -> None:
    expected = batches(digits, workers=0)
    iterator = torch.utils.data.DataLoader.__iter__(
        build_loader(digits, batch_size=100, workers=2, seed=3, epoch=2, shuffle=True)
    )
    first = next(iterator)
    for worker in iterator._workers:  # type: ignore[attr-defined]
        os.kill(worker.pid, signal.SIGTERM)
        os.kill(worker.pid, signal.SIGINT)

    assert_same(expected, [(images, labels) for images, labels, _ in (first, *iterator)])
