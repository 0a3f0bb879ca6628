from __future__ import annotations

import pytest

from vitfast.inference.cuda.graph_cache import Part, bucket_of, is_bucket, split_batch


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
    assert [bucket_of(count) for count in (1, 2, 3, 4, 5, 8, 9, 128, 129)] == [1, 2, 4, 4, 8, 8, 16, 128, 256]


def test_powers_of_two_are_told_from_other_numbers():
    assert [size for size in range(-4, 20) if is_bucket(size)] == [1, 2, 4, 8, 16]
