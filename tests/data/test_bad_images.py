"""Ten unusual kinds of image file, and the policies for files that cannot be read."""

from __future__ import annotations

import os
import resource
import struct
import warnings
import zlib
from collections.abc import Callable
from itertools import islice
from multiprocessing import active_children
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from vitfast.config import AugmentConfig, DataConfig
from vitfast.data import ImageDataset, build_dataset, build_loader, load_image
from vitfast.data.bad_images import BadImages
from vitfast.errors import UserError

CORNERS = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[0, 0, 0], [255, 255, 255], [255, 255, 0]]], np.uint8)
RED = np.full((8, 8, 3), [254, 0, 0], np.uint8)
GREY = np.array([[0, 100], [200, 255]], np.uint8)


def truncated_jpeg(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, format="jpeg")
    path.write_bytes(path.read_bytes()[:2000])


def palette_with_alpha(path: Path) -> None:
    Image.fromarray(CORNERS).quantize(8).save(path, format="png", transparency=bytes([0, 128] + [255] * 6))


def png_bomb(path: Path) -> None:
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    path.write_bytes(content)


def jpeg_bomb(path: Path) -> None:
    Image.new("RGB", (16, 16)).save(path, format="jpeg")
    content = path.read_bytes()
    size = content.index(b"\xff\xc0") + 5  # in the frame header: marker, length, precision, height, width
    path.write_bytes(content[:size] + struct.pack(">HH", 20_000, 20_000) + content[size + 4 :])


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    Image.fromarray(np.ascontiguousarray(np.rot90(CORNERS))).save(path, format="png", exif=exif)


class Kind(NamedTuple):
    """How such a file is made, and the pixels that it shows or the reason that it is refused for."""

    make: Callable[[Path], None]
    shows: np.ndarray | None = None
    refused: str = ""


KINDS = {
    "empty": Kind(lambda path: path.touch(), refused="the file is empty"),
    "truncated JPEG": Kind(truncated_jpeg, refused="truncated"),
    "PNG named .jpg": Kind(lambda path: Image.fromarray(CORNERS).save(path, format="png"), CORNERS),
    "CMYK": Kind(lambda path: Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(path), RED),
    "grey": Kind(lambda path: Image.fromarray(GREY).save(path, format="png"), np.repeat(GREY[..., None], 3, axis=2)),
    "palette with alpha": Kind(palette_with_alpha, CORNERS),
    "one pixel": Kind(
        lambda path: Image.new("RGB", (1, 1), (1, 2, 3)).save(path, format="bmp"), np.array([[[1, 2, 3]]], np.uint8)
    ),
    "bomb, PNG": Kind(png_bomb, refused="400000000 pixels"),
    "bomb, JPEG": Kind(jpeg_bomb, refused="400000000 pixels"),
    "turned by EXIF": Kind(turned, CORNERS),
    "broken EXIF": Kind(
        lambda path: Image.fromarray(RED).save(path, exif=b"Exif\0\0MM\0\x2a\0\0\xff\xff\xff\xff\0"), RED
    ),
    "no image": Kind(lambda path: path.write_text("no picture") and None, refused="none of the formats"),
}
READABLE = [name for name, kind in KINDS.items() if kind.shows is not None]
REFUSED = [name for name, kind in KINDS.items() if kind.refused]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("name", READABLE)
def test_readable_images_have_the_expected_pixels(name: str, tmp_path: Path) -> None:
    KINDS[name].make(tmp_path / "image.jpg")
    found, expected = np.asarray(load_image(tmp_path / "image.jpg")).astype(int), KINDS[name].shows
    assert expected is not None
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= (3 if name in ("CMYK", "broken EXIF") else 0)  # those are real JPEG
    grey = load_image(tmp_path / "image.jpg", 1)
    assert (grey.mode, grey.size) == ("L", expected.shape[1::-1])


@pytest.mark.parametrize("name", REFUSED)
def test_unreadable_images_are_named_and_use_no_memory(name: str, tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    KINDS[name].make(path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as error:
        load_image(path)
    assert str(error.value).startswith(f"{path} cannot be decoded as an image: ")
    assert KINDS[name].refused in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 50_000  # KiB; the bombs would need 1,200,000


def test_a_palette_is_silent(tmp_path: Path) -> None:
    palette_with_alpha(tmp_path / "image.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_image(tmp_path / "image.png")


# ---------------------------------------------------------------------------------------------------------------------
# in a loader: nine pictures, one of which is of such a kind

BAD = 4


@pytest.fixture
def root(make_folder) -> Path:
    return make_folder({"train": {"cat": 5, "dog": 4}, "val": {"cat": 5, "dog": 4}})


def spoil(root: Path, name: str, split: str = "train", index: int = BAD) -> Path:
    """Puts a file of a kind in the place of a picture."""
    file = root / split / ("cat" if index < 5 else "dog") / f"{index % 5:03d}.png"
    KINDS[name].make(file.with_suffix(".jpg"))
    file.unlink()
    return file.with_suffix(".jpg")


def open_split(root: Path, on_corrupt: str, split: str = "train", **augment: int) -> ImageDataset:
    data = DataConfig(dataset="image_folder", root=str(root), img_size=16, on_corrupt=on_corrupt)
    data.augment = AugmentConfig(affine_degrees=30, **augment)  # type: ignore[arg-type]
    return build_dataset(data, split, seed=3)


Batches = list[tuple[torch.Tensor, torch.Tensor]]


def read(dataset: ImageDataset, workers: int = 0, epoch: int = 0, **options: object) -> tuple[Batches, list[str]]:
    """The batches of an epoch, and what the training process was warned of."""
    warned: list[str] = []
    defaults = {"batch_size": 2, "seed": 3, "shuffle": True}
    loader = build_loader(dataset, workers=workers, epoch=epoch, warn=warned.append, **(defaults | options))  # type: ignore[arg-type]
    return list(loader), warned


def assert_same(first: Batches, second: Batches) -> None:
    for (images, labels), (other_images, other_labels) in zip(first, second, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("on_corrupt", ["raise", "skip"])
@pytest.mark.parametrize("name", READABLE)
def test_a_readable_image_is_read_like_any_other(root: Path, name: str, on_corrupt: str, workers: int) -> None:
    spoil(root, name)
    dataset = open_split(root, on_corrupt)
    batches, warned = read(dataset, workers, shuffle=False)
    for sample in range(9):
        image, label = dataset[sample]
        assert torch.equal(batches[sample // 2][0][sample % 2], image)
        assert batches[sample // 2][1][sample % 2] == label
    assert (warned, len(dataset.bad_images)) == ([], 0)


def test_workers_are_silent_about_broken_exif(
    root: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(root, "broken EXIF")
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: os.write(2, str(message).encode()))
    read(open_split(root, "raise"), workers=2)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", REFUSED)
def test_raise_names_the_file(root: Path, name: str, workers: int) -> None:
    path, before = spoil(root, name), active_children()
    with pytest.raises(UserError) as error:
        read(open_split(root, "raise"), workers)
    assert active_children() == before, "the workers outlive the error"
    assert str(error.value).startswith(f"{path} cannot be decoded as an image: ")
    assert KINDS[name].refused in str(error.value)
    assert str(error.value).endswith("(data.on_corrupt=skip skips such images)")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", REFUSED)
def test_skip_reads_another_in_its_place_and_says_so_once(root: Path, name: str, workers: int) -> None:
    path = spoil(root, name)
    dataset = open_split(root, "skip")
    batches, warned = read(dataset, workers, shuffle=False)

    assert [len(labels) for _, labels in batches] == [2, 2, 2, 2, 1]
    (stand_in,) = {dataset.image_of(BAD)} - {BAD}
    image, label = dataset.read(stand_in, BAD)  # with the augmentation of the sample, not its own
    assert torch.equal(batches[BAD // 2][0][BAD % 2], image)
    assert batches[BAD // 2][1][BAD % 2] == label
    assert not torch.equal(image, dataset[stand_in][0])
    assert len(warned) == 1
    assert warned[0].startswith(f"{path} cannot be decoded as an image: ")
    assert warned[0].endswith("Another image replaces it (1 so far; training stops at more than 1)")
    assert read(dataset, workers, epoch=1)[1] == []
    assert len(dataset.bad_images) == 1


@pytest.mark.parametrize("repeats", [1, 3])
def test_replacement_is_a_function_of_seed_epoch_and_sample(root: Path, repeats: int) -> None:
    spoil(root, "empty")
    whole, _ = read(open_split(root, "skip", repeats=repeats))
    for workers, start in ((0, 0), (2, 0), (1, 4), (0, 6)):
        assert_same(whole[start // 2 :], read(open_split(root, "skip", repeats=repeats), workers, start=start)[0])
    for rank in range(2):
        part, _ = read(open_split(root, "skip", repeats=repeats), rank=rank, world=2)
        assert_same([(images[rank::2], labels[rank::2]) for images, labels in whole], part)


def test_replacement_image_differs_between_epochs(root: Path) -> None:
    spoil(root, "empty")
    dataset = open_split(root, "skip")
    read(dataset)
    stand_ins = []
    for epoch in range(100):
        dataset.set_epoch(epoch)
        stand_ins.append(dataset.image_of(BAD))
    assert set(stand_ins) == set(range(9)) - {BAD}
    # and each sample, each repetition and each seed has its own
    other_seed = build_dataset(DataConfig(dataset="image_folder", root=str(root)), "train", seed=4)
    other_seed.set_epoch(99)
    few = [list(islice(one.candidates(sample), 8)) for one, sample in ((dataset, 1), (dataset, 10), (other_seed, 1))]
    assert [indices[0] for indices in few] == [1, 1, 1]
    assert few[0] != few[1] != few[2] != few[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_end_the_training_and_are_named(root: Path, workers: int) -> None:
    paths = [spoil(root, "empty"), spoil(root, "no image", index=7)]
    dataset = open_split(root, "skip")
    with pytest.raises(UserError, match=r"^2 of 9 training images .* skips at most 1") as error:
        read(dataset, workers)
    assert all(f"\n  {path} cannot be decoded" in str(error.value) for path in paths)


def test_nothing_but_bad_images_ends_at_once(root: Path) -> None:
    for index in range(9):
        spoil(root, "empty", index=index)
    with pytest.raises(UserError, match=r"^2 of 9 training images"):
        read(open_split(root, "skip"), batch_size=9)


def test_only_image_has_no_replacement(make_folder) -> None:
    root = make_folder({"train": {"cat": 1}})
    spoil(root, "empty", index=0)
    with pytest.raises(UserError, match=r"^1 of 1 training images cannot be read"):
        read(open_split(root, "skip"))


@pytest.mark.parametrize("workers", [0, 2])
def test_where_is_measured_a_bad_image_is_left_out(root: Path, workers: int) -> None:
    paths = [spoil(root, "empty", "val", 4), spoil(root, "no image", "val", 5)]
    dataset = open_split(root, "skip", "val")
    batches, warned = read(dataset, workers, shuffle=False)

    assert [len(labels) for _, labels in batches] == [2, 2, 0, 2, 1]
    assert batches[2][0].shape == (0, 3, 16, 16)
    good = [dataset[index] for index in range(9) if index not in (4, 5)]
    assert torch.equal(torch.cat([images for images, _ in batches]), torch.stack([image for image, _ in good]))
    assert torch.cat([labels for _, labels in batches]).tolist() == [label for _, label in good]
    assert [warning.partition(" cannot")[0] for warning in warned] == [str(path) for path in paths]
    assert warned[1].endswith("It is excluded: 7 of the split's 9 images are evaluated")
    assert read(dataset, workers, shuffle=False)[1] == []


def test_a_split_of_which_nothing_can_be_measured_is_an_error(root: Path) -> None:
    for index in range(9):
        spoil(root, "empty", "val", index)
    with pytest.raises(UserError, match=r"^none of the 9 images of the split can be read:(\n  .*){3}\n  and 6 more"):
        read(open_split(root, "skip", "val"), shuffle=False)
    with pytest.raises(UserError, match="cannot be decoded"):
        read(open_split(root, "raise", "val"), shuffle=False)


@pytest.mark.parametrize(
    ("images", "allowed"), [(1, 0), (2, 1), (1000, 1), (1999, 1), (2000, 2), (2001, 2), (1_281_167, 1281)]
)
def test_one_image_or_a_thousandth_is_passed_over(images: int, allowed: int) -> None:
    bad = BadImages(images, "skip", measured=False)
    for index in range(allowed):
        assert len(bad.add({index: f"{index}.jpg"})) == 1
        assert bad.add({index: f"{index}.jpg"}) == []  # the same one in another epoch
    with pytest.raises(UserError, match=f"^{allowed + 1:,} of {images:,} training images cannot be read"):
        bad.add({allowed: "one.jpg"})
