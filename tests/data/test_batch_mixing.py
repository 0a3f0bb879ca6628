"""MixUp and CutMix: images, weights, and resumed runs."""

from __future__ import annotations

import pytest
import torch

from vitfast.config import AugmentConfig
from vitfast.data import create_mixing
from vitfast.models.multi_crop import Crops

LABELS = torch.arange(6)


def images() -> torch.Tensor:
    """Each image is filled with its own number."""
    return torch.arange(6.0).reshape(6, 1, 1, 1).expand(6, 3, 16, 16).clone()


def test_nothing_to_mix() -> None:
    assert create_mixing(AugmentConfig(), 6, seed=0) is None


@pytest.mark.parametrize("options", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_labels_are_mixed_as_the_pixels_are(options: dict[str, float]) -> None:
    mixing = create_mixing(AugmentConfig(**options), 6, seed=0)
    assert mixing is not None
    for step in range(20):
        mixed, shares = mixing(images(), LABELS, epoch=0, step=step)
        torch.testing.assert_close(shares.sum(1), torch.ones(6))
        # the mean pixel is the mean of the numbers, weighted by their shares
        torch.testing.assert_close(mixed.mean((1, 2, 3)), shares @ torch.arange(6.0), atol=1e-4, rtol=1e-4)


def test_mixup_blends_and_cutmix_cuts() -> None:
    mixup = create_mixing(AugmentConfig(mixup=1.0), 6, seed=0)
    cutmix = create_mixing(AugmentConfig(cutmix=1.0), 6, seed=0)
    assert mixup is not None
    assert cutmix is not None
    blended, _ = mixup(images(), LABELS, epoch=0, step=0)
    cut, _ = cutmix(images(), LABELS, epoch=0, step=0)
    assert all(image.unique().numel() == 1 for image in blended)
    assert all(set(image.unique().tolist()) <= set(range(6)) for image in cut)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
@pytest.mark.parametrize("world", [1, 2])
def test_repeats_are_not_mixed_with_themselves(kind: str, world: int) -> None:
    mixing = create_mixing(AugmentConfig(repeats=3, **{kind: 1.0}), 10, seed=0)  # type: ignore[arg-type]
    assert mixing is not None
    labels = torch.arange(10).repeat_interleave(3)[1::world]  # a batch may begin amid the repeats
    for step in range(10):
        mixed, shares = mixing(labels.view(-1, 1, 1, 1).expand(-1, 3, 16, 16).float(), labels, epoch=0, step=step)
        own = shares.gather(1, labels[:, None])[:, 0]
        assert ((shares > 0).sum(1) == 2).all() or own.max() in (0, 1)  # CutMix may cut all or nothing
        torch.testing.assert_close(mixed.mean((1, 2, 3)), shares @ torch.arange(10.0), atol=1e-4, rtol=1e-4)
        assert own.max() - own.min() < 1e-6  # every image keeps the same share of itself, in its own place


def test_random_numbers_are_a_function_of_seed_epoch_and_step() -> None:
    both = AugmentConfig(mixup=0.8, cutmix=1.0)

    def mixed(seed: int, epoch: int, step: int) -> torch.Tensor:
        mixing = create_mixing(both, 6, seed)
        assert mixing is not None
        return mixing(images(), LABELS, epoch=epoch, step=step)[0]

    reference, state = mixed(1, 2, 3), torch.get_rng_state()
    torch.rand(7)
    assert torch.equal(mixed(1, 2, 3), reference)
    assert not any(torch.equal(other, reference) for other in (mixed(0, 2, 3), mixed(1, 0, 3), mixed(1, 2, 0)))
    assert not torch.equal(torch.get_rng_state(), state)  # the test's own draw; mixing puts the state back


def test_crops_are_mixed_with_the_same_image_in_their_own_shares() -> None:
    mixing = create_mixing(AugmentConfig(mixup=1.0), 1, seed=0)
    assert mixing is not None
    labels = torch.zeros(6, dtype=torch.int64)
    mixed, targets = mixing(Crops([images(), images()[:, :, :8, :8]]), labels, epoch=0, step=0)
    assert targets is labels
    first, second = mixed.tensors
    assert (first.shape, second.shape) == ((6, 3, 16, 16), (6, 3, 8, 8))
    # image i becomes share * i + (1 - share) * (i - 1) = i - 1 + share; the partner of the first is the last
    shares = [crop[1:, 0, 0, 0] - torch.arange(5.0) for crop in (first, second)]
    assert all(torch.allclose(one, one[:1].expand(5)) for one in shares)
    assert abs(float(shares[0][0] - shares[1][0])) > 1e-3
