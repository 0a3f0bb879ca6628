"""The transforms agree with torchvision's and are random only in training."""

from __future__ import annotations

import resource

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from vitfast.config import AugmentConfig
from vitfast.data import eval_transform, train_transform

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(32, 32), (50, 40), (40, 77), (1, 1), (500, 3), (36, 36)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
def test_evaluation_equals_torchvisions_classes(interpolation: str, size: tuple[int, int], crop_pct: float) -> None:
    image = picture(*size)
    reference = v2.Compose(
        [
            v2.Resize(int(32 // crop_pct), interpolation=v2.InterpolationMode(interpolation)),
            v2.CenterCrop(32),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )

    actual = eval_transform(32, 3, MEAN, STD, interpolation, crop_pct)(image)

    assert actual.is_contiguous()
    torch.testing.assert_close(actual, torch.as_tensor(reference(image)), atol=2e-6, rtol=0)


@pytest.mark.parametrize("size", [(50, 40), (40, 77), (1, 1), (500, 3), (32, 32), (36, 36)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
def test_both_sides_squash_as_torchvisions_classes_do(size: tuple[int, int], crop_pct: float) -> None:
    image, side = picture(*size), int(32 // crop_pct)
    geometry = [v2.Resize((side, side), interpolation=v2.InterpolationMode.BICUBIC), v2.CenterCrop(32)]
    reference = v2.Compose([*geometry, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])

    actual = eval_transform(32, 3, MEAN, STD, "bicubic", crop_pct, "both_sides")(image)

    torch.testing.assert_close(actual, torch.as_tensor(reference(image)), atol=2e-6, rtol=0)
    cropped = eval_transform(32, 3, MEAN, STD, "bicubic", crop_pct)(image)
    assert torch.equal(actual, cropped) == (size[0] == size[1])


def test_training_without_random_crops_resizes_alike() -> None:
    image = picture(50, 40)
    for resize in ("short_side", "both_sides"):
        training = train_transform(AugmentConfig(), 32, 3, MEAN, STD, "bicubic", resize)(image)
        assert torch.equal(training, eval_transform(32, 3, MEAN, STD, "bicubic", 1.0, resize)(image))


@pytest.mark.parametrize("size", [(40_000, 2), (1, 60_000)])
def test_a_very_long_image_shows_its_middle_and_costs_no_memory(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (250, 0, 0))
    middle = tuple(side // 2 + offset for offset in (-9, 9) for side in size)
    image.paste((0, 0, 250), middle)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    result = eval_transform(224, 3, [0.0] * 3, [1.0] * 3, "bicubic", 1.0)(image)

    torch.testing.assert_close(result.mean((1, 2)), torch.tensor([0.0, 0.0, 250 / 255]))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 200_000  # KiB; the whole has gigapixels


def test_an_unknown_way_to_resize_is_refused() -> None:
    with pytest.raises(KeyError, match="long_side"):
        eval_transform(32, 3, MEAN, STD, "bicubic", 1.0, "long_side")


def test_grey_images() -> None:
    one = eval_transform(8, 1, [0.5], [0.25], "bicubic", 1.0)(Image.new("L", (8, 8), 255))
    three = eval_transform(8, 3, [0.5], [0.25], "bicubic", 1.0)(Image.new("L", (8, 8), 255))

    torch.testing.assert_close(one, torch.full((1, 8, 8), 2.0))
    torch.testing.assert_close(three, torch.full((3, 8, 8), 2.0))


def test_the_result_owns_its_memory() -> None:
    image = Image.new("RGB", (8, 8), (9, 9, 9))
    result = eval_transform(8, 3, MEAN, STD, "bicubic", 1.0)(image)
    result.zero_()

    assert image.getpixel((0, 0)) == (9, 9, 9)


def test_no_augmentation_is_not_random() -> None:
    image = picture(40, 32)
    transform = train_transform(AugmentConfig(), 32, 3, MEAN, STD, "bicubic")
    before = torch.get_rng_state()

    assert torch.equal(transform(image), transform(image))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(transform(image), eval_transform(32, 3, MEAN, STD, "bicubic", 1.0)(image))


@pytest.mark.parametrize(
    "augment",
    [
        AugmentConfig(crop_scale=0.3),
        AugmentConfig(crop_pad=4),
        AugmentConfig(flip=0.5),
        AugmentConfig(affine_degrees=20),
        AugmentConfig(affine_translate=0.2),
        AugmentConfig(affine_scale=0.2),
        AugmentConfig(color_jitter=0.4),
        AugmentConfig(hue=0.1),
        AugmentConfig(rand_ops=2),
        AugmentConfig(erase=0.9),
    ],
    ids=lambda augment: next(name for name, value in vars(augment).items() if value),
)
def test_each_option_changes_images_at_random_and_keeps_the_shape(augment: AugmentConfig) -> None:
    image = picture(32, 32)
    transform = train_transform(augment, 32, 3, MEAN, STD, "bicubic")
    plain = eval_transform(32, 3, MEAN, STD, "bicubic", 1.0)(image)
    results = [transform(image) for _ in range(16)]

    assert {tuple(result.shape) for result in results} == {(3, 32, 32)}
    assert any(not torch.equal(result, plain) for result in results)
    assert any(not torch.equal(result, results[0]) for result in results)


def test_flip_is_a_mirror_with_its_probability() -> None:
    image = picture(32, 32)
    plain = train_transform(AugmentConfig(), 32, 3, MEAN, STD, "bicubic")(image)
    transform = train_transform(AugmentConfig(flip=0.25), 32, 3, MEAN, STD, "bicubic")
    mirrored = 0
    for _ in range(400):
        result = transform(image)
        mirrored += torch.equal(result, plain.flip(2))
        assert torch.equal(result, plain) or torch.equal(result, plain.flip(2))

    assert 60 < mirrored < 140
    always = train_transform(AugmentConfig(flip=1.0), 32, 3, MEAN, STD, "bicubic")
    assert torch.equal(always(image), plain.flip(2))


def test_hue_turns_colours_and_leaves_greys() -> None:
    transform = train_transform(AugmentConfig(hue=0.5), 1, 3, [0.0] * 3, [1.0] * 3, "bicubic")
    red, grey = Image.new("RGB", (1, 1), (255, 0, 0)), Image.new("RGB", (1, 1), (90, 90, 90))
    turned = [tuple(transform(red).flatten().tolist()) for _ in range(50)]
    assert len(set(turned)) > 40
    assert all(max(colour) == 1 and min(colour) == 0 for colour in turned)  # as bright and as saturated as before
    assert {colour.index(1) for colour in turned} == {0, 1, 2}
    torch.testing.assert_close(transform(grey), torch.full((3, 1, 1), 90 / 255))
    slight = train_transform(AugmentConfig(hue=0.05), 1, 3, [0.0] * 3, [1.0] * 3, "bicubic")
    assert all(slight(red)[0] == 1 and slight(red).min() == 0 and slight(red).sum() < 1.35 for _ in range(50))


def test_colour_jitter_without_hue_is_torchvisions_of_three() -> None:
    image = picture(32, 32)
    reference = v2.ColorJitter(0.4, 0.4, 0.4)
    transform = train_transform(AugmentConfig(color_jitter=0.4), 32, 3, [0.0] * 3, [1.0] * 3, "bicubic")
    for seed in range(8):
        torch.manual_seed(seed)
        expected = torch.from_numpy(np.array(reference(image))).permute(2, 0, 1) / 255
        torch.manual_seed(seed)
        torch.testing.assert_close(transform(image), expected)


def test_pad_and_crop_is_a_shift() -> None:
    image = picture(8, 8)
    padded = np.pad(np.asarray(image), ((2, 2), (2, 2), (0, 0)))
    shifts = {padded[y : y + 8, x : x + 8].tobytes() for y in range(5) for x in range(5)}
    transform = train_transform(AugmentConfig(crop_pad=2), 8, 3, [0.0] * 3, [1.0] * 3, "bicubic")
    results = {(transform(image) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy().tobytes() for _ in range(300)}

    assert results == shifts


def test_crop_scale_is_an_area() -> None:
    ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (256, 1)))
    augment = AugmentConfig(crop_scale=0.25, crop_ratio=[1.0, 1.0])
    transform = train_transform(augment, 64, 1, [0.0], [1.0], "bilinear")
    widths = []
    for _ in range(300):
        row = transform(ramp)[0, 32]
        widths.append(float(row[-1] - row[0]) * 64 / 63)

    assert 0.48 < min(widths) < 0.6
    assert 0.9 < max(widths) < 1.02


@pytest.mark.parametrize("in_chans", [1, 3])
def test_everything_together_on_colour_and_grey(in_chans: int) -> None:
    everything = AugmentConfig(
        crop_scale=0.3, affine_degrees=9, flip=0.5, color_jitter=0.4, hue=0.1, rand_ops=2, rand_magnitude=20, erase=0.5
    )
    mean, std = [0.4] * in_chans, [0.2] * in_chans
    transform = train_transform(everything, 32, in_chans, mean, std, "bicubic")
    for seed in range(60):  # every operation of RandAugment comes up
        torch.manual_seed(seed)
        result = transform(picture(50, 40, "L" if in_chans == 1 else "RGB"))
        assert result.shape == (in_chans, 32, 32)
        assert result.isfinite().all()


def test_erasing_replaces_a_rectangle_by_noise() -> None:
    torch.manual_seed(1)
    plain = train_transform(AugmentConfig(), 32, 3, MEAN, STD, "bicubic")(picture(32, 32))
    erased = train_transform(AugmentConfig(erase=1.0), 32, 3, MEAN, STD, "bicubic")(picture(32, 32))
    changed = (plain != erased).any(0)
    rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
    assert changed.sum() == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
    assert 0.5 < erased[:, changed].std() < 1.5
