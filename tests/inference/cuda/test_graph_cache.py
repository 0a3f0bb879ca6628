from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

from support.eager_recorder import EagerRecorder
from vitfast.inference.cuda.graph_cache import GraphCache, Part, is_bucket, split_batch


class CountingRecorder(EagerRecorder):
    """Tells what was recorded, and holds that recordings are made and run within turns, one at a time."""

    def __init__(self):
        self.sizes = []
        self.waits = 0
        self.turns = 0
        self.in_turn = False
        self.is_possible = True

    def record(self, function, examples):
        assert self.in_turn
        self.sizes.append(tuple(examples[0].shape))
        return super().record(function, examples)

    @contextmanager
    def turn(self):
        assert not self.in_turn
        self.in_turn = True
        self.turns += 1
        yield
        self.in_turn = False

    def wait(self):
        self.waits += 1


@pytest.fixture
def recorder():
    return CountingRecorder()


@pytest.fixture
def cache(recorder):
    return GraphCache(lambda: recorder, largest=8, max_recordings=3)


def double_and_sum(x, y):
    return 2 * x, x.flatten(1).sum(1) + y


def sample(batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, 2, generator=generator), torch.randn(batch, generator=generator)


@pytest.mark.parametrize("batch", [0, 1, 2, 3, 7, 8, 9, 21])
def test_results_are_those_of_the_function(cache, batch):
    tensors = sample(batch)
    for found, expected in zip(cache.run("f", double_and_sum, tensors), double_and_sum(*tensors), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_recording_serves_all_batches_of_its_bucket(cache, recorder):
    for seed, batch in enumerate((5, 8, 7, 6, 5)):
        tensors = sample(batch, seed)
        assert torch.equal(cache.run("f", double_and_sum, tensors)[0], 2 * tensors[0])
    assert recorder.sizes == [(8, 3, 2)]
    cache.run("f", double_and_sum, sample(21))
    assert recorder.sizes == [(8, 3, 2)]
    cache.run("f", double_and_sum, sample(3))
    cache.run("g", double_and_sum, sample(3))
    assert recorder.sizes == [(8, 3, 2), (4, 3, 2), (4, 3, 2)]


def test_types_and_shapes_have_recordings_of_their_own(cache, recorder):
    for x in (torch.ones(2, 3), torch.ones(2, 4), torch.ones(2, 3).double()):
        (result,) = cache.run("f", lambda x: (x + 1,), (x,))
        assert result.dtype == x.dtype
        assert torch.equal(result, x + 1)
    assert len(recorder.sizes) == 3


def test_the_least_recently_used_recording_goes_when_there_are_too_many(cache, recorder):
    for batch in (1, 2, 4, 1, 8):  # the fourth of three drops that for 2
        cache.run("f", double_and_sum, sample(batch))
    assert recorder.waits == 1
    for batch in (1, 4, 8):
        cache.run("f", double_and_sum, sample(batch))
    assert len(recorder.sizes) == 4
    cache.run("f", double_and_sum, sample(2))
    assert len(recorder.sizes) == 5


def test_results_are_new_memory(cache):
    tensors = sample(3)
    first = cache.run("f", double_and_sum, tensors)
    kept = [one.clone() for one in first]
    cache.run("f", double_and_sum, sample(4, seed=1))
    assert all(torch.equal(one, before) for one, before in zip(first, kept, strict=True))


def test_padding_of_a_bucket_does_not_change_results(cache):
    x, y = sample(4)
    x[:] = torch.nan
    cache.run("f", double_and_sum, (x, y))
    assert all(one.isfinite().all() for one in cache.run("f", double_and_sum, sample(3)))


def test_recordings_outlive_inference_mode(cache):
    with torch.inference_mode():
        cache.run("f", double_and_sum, sample(3))
        given = sample(4, seed=1)
    found = cache.run("f", double_and_sum, given)[0]
    assert torch.equal(found, 2 * given[0])
    assert not found.is_inference()
    with torch.inference_mode():
        assert torch.equal(cache.run("f", double_and_sum, given)[0], found)


def test_where_nothing_can_be_recorded_the_function_runs(cache, recorder):
    recorder.is_possible = False
    tensors = sample(3)
    assert torch.equal(cache.run("f", double_and_sum, tensors)[0], 2 * tensors[0])
    assert recorder.turns == 0


def test_threads_take_turns(cache):
    batches = [sample(batch, batch) for batch in (1, 3, 5, 8, 11)] * 8
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda tensors: cache.run("f", double_and_sum, tensors), batches))
    for tensors, found in zip(batches, results, strict=True):
        assert torch.equal(found[0], 2 * tensors[0])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
def test_a_copy_starts_empty(copied):
    cache = GraphCache(EagerRecorder, largest=8)
    cache.run("f", double_and_sum, sample(3))
    other = copied(cache)
    assert other.largest == 8
    assert torch.equal(other.run("f", lambda x, y: (-x,), sample(3))[0], -sample(3)[0])


@pytest.mark.parametrize("largest", [1, 2, 8, 256])
@pytest.mark.parametrize("batch", [0, 1, 2, 3, 5, 7, 8, 9, 100, 255, 256, 257, 600])
def test_every_image_is_in_one_part_that_fits_its_bucket(batch, largest):
    parts = split_batch(batch, largest)
    assert [image for part in parts for image in range(part.start, part.start + part.count)] == list(range(batch))
    for part in parts:
        assert is_bucket(part.bucket)
        assert part.bucket <= largest
        assert part.bucket // 2 < part.count <= part.bucket
    assert all(part.count == largest for part in parts[:-1])


def test_a_rest_takes_the_next_power_of_two():
    assert split_batch(600, 256) == [Part(0, 256, 256), Part(256, 256, 256), Part(512, 88, 128)]
    counts = (1, 2, 3, 4, 5, 8, 9, 128, 129)
    assert [split_batch(count, 256)[0].bucket for count in counts] == [1, 2, 4, 4, 8, 8, 16, 128, 256]


def test_powers_of_two_are_distinguished():
    assert [size for size in range(-4, 20) if is_bucket(size)] == [1, 2, 4, 8, 16]
