"""Samples of an epoch, their order, and their distribution over ranks."""

from __future__ import annotations

from collections import Counter

import pytest

from vitfast.data import EpochBatchSampler


def batches(size: int, batch_size: int = 8, **options: object) -> list[list[int]]:
    defaults = {"seed": 0, "epoch": 0, "shuffle": True}
    sampler = EpochBatchSampler(size, batch_size, **(defaults | options))  # type: ignore[arg-type]
    result = list(sampler)
    assert len(sampler) == len(result)
    return result


def order(size: int, **options: object) -> list[int]:
    return [sample for batch in batches(size, **options) for sample in batch]


@pytest.mark.parametrize("size", [0, 1, 2, 1000])
def test_order_is_a_permutation_that_depends_on_seed_and_epoch(size: int) -> None:
    assert sorted(order(size)) == list(range(size))
    assert order(size) == order(size)
    assert order(size, start=size // 2) == order(size)[size // 2 :]
    if size == 1000:
        assert len({tuple(order(size, seed=seed, epoch=epoch)) for seed in range(5) for epoch in range(5)}) == 25
    assert order(size, epoch=1, shuffle=False) == list(range(size))


def test_order_is_pinned() -> None:
    """A change of this order would make runs of older versions resume with other images."""
    assert order(10) == PINNED_ORDER
    assert order(10, repeats=2) == PINNED_ORDER_TWICE


PINNED_ORDER = [1, 7, 6, 5, 2, 8, 9, 0, 4, 3]
PINNED_ORDER_TWICE = [1, 11, 7, 17, 6, 16, 5, 15, 2, 12]


@pytest.mark.parametrize("start", [0, 8, 20, 30])
def test_batches_are_pieces_of_the_order(start: int) -> None:
    whole = order(30)[start:]
    expected = [whole[first : first + 8] for first in range(0, len(whole), 8)]
    assert batches(30, start=start) == expected
    assert batches(30, start=start, drop_last=True) == [batch for batch in expected if len(batch) == 8]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("world", [1, 2, 3, 5, 8, 11])
def test_the_parts_of_the_ranks_make_up_the_batch(world: int, repeats: int, drop_last: bool) -> None:
    options = {"start": 8, "repeats": repeats, "drop_last": drop_last}
    whole = batches(34, **options)  # the last of its batches has 2 samples
    assert len(whole[-1]) == (8 if drop_last else 2)
    parts = [batches(34, rank=rank, world=world, **options) for rank in range(world)]
    for batch, samples in enumerate(whole):
        rejoined = [0] * len(samples)
        for rank in range(world):
            rejoined[rank::world] = parts[rank][batch]
        assert rejoined == samples


@pytest.mark.parametrize(("size", "repeats"), [(30, 3), (31, 3), (32, 3), (7, 4), (1, 3), (2, 9)])
def test_an_epoch_with_repeats_is_as_long_and_has_fewer_images(size: int, repeats: int) -> None:
    samples = order(size, repeats=repeats)
    assert len(samples) == size == len(set(samples))
    counts = Counter(sample % size for sample in samples)
    full, rest = divmod(size, repeats)
    assert sorted(counts.values(), reverse=True) == [repeats] * full + [rest] * bool(rest)
    assert all(sample // size < repeats for sample in samples)


def test_the_images_that_are_repeated_are_others_in_each_epoch() -> None:
    chosen = [frozenset(sample % 90 for sample in order(90, repeats=3, epoch=epoch)) for epoch in range(6)]
    assert {len(images) for images in chosen} == {30}
    assert len(set(chosen)) == 6
    assert frozenset(order(90)[:30]) == chosen[0]


@pytest.mark.parametrize("world", [3, 4])
def test_repeats_of_an_image_are_on_different_ranks(world: int) -> None:
    for rank in range(world):
        images = [sample % 96 for sample in order(96, batch_size=12, repeats=3, rank=rank, world=world)]
        assert len(set(images)) == len(images)


def test_invalid_arguments_are_refused() -> None:
    for start in (-1, 11):
        with pytest.raises(ValueError, match=rf"start must be in 0\.\.10, the size of the data set, got {start}"):
            batches(10, start=start)
    for rank in (-1, 2):
        with pytest.raises(ValueError, match=rf"rank must be in 0\.\.1, since world=2, got {rank}"):
            batches(10, rank=rank, world=2)
