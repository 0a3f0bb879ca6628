"""Reading an image file; ``test_bad_images`` has the unusual kinds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitfast.data import load_image
from vitfast.errors import UserError

CORNERS = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[0, 0, 0], [255, 255, 255], [255, 255, 0]]], np.uint8)


def test_rgb_and_grey(tmp_path: Path) -> None:
    path = tmp_path / "corners.png"
    Image.fromarray(CORNERS).save(path)

    np.testing.assert_array_equal(np.asarray(load_image(path)), CORNERS)
    grey = load_image(path, 1)
    assert grey.mode == "L"
    assert np.asarray(grey)[0, 1] == 150  # ITU-R 601: 0.587 of 255


def test_alpha_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "alpha.png"
    Image.new("RGBA", (2, 2), (10, 20, 30, 0)).save(path)

    assert np.asarray(load_image(path)).tolist() == [[[10, 20, 30]] * 2] * 2


def test_sixteen_bit_grey_keeps_its_upper_eight(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.array([[0, 255, 256], [32768, 65280, 65535]], np.uint16)).save(path)

    np.testing.assert_array_equal(np.asarray(load_image(path, 1)), [[0, 0, 1], [128, 255, 255]])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path: Path, orientation: int) -> None:
    stored = {
        1: CORNERS,
        2: CORNERS[:, ::-1],
        3: CORNERS[::-1, ::-1],
        4: CORNERS[::-1],
        5: CORNERS.transpose(1, 0, 2),
        6: np.rot90(CORNERS),
        7: CORNERS.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(CORNERS, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)

    np.testing.assert_array_equal(np.asarray(load_image(path)), CORNERS)


@pytest.mark.parametrize("format", ["jpeg", "png", "bmp", "tiff", "webp"])
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_truncated_file(tmp_path: Path, format: str, share: float) -> None:
    whole, path = tmp_path / "whole", tmp_path / f"half.{format}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole, format=format)
    content = whole.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])

    _assert_refused(path, "cannot be decoded as an image")


def test_flipped_bytes_are_read_or_refused_by_name(tmp_path: Path) -> None:
    path, random = tmp_path / "damaged.png", np.random.default_rng(0)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    content = path.read_bytes()
    refused: list[str] = []
    for _ in range(200):
        damaged = bytearray(content)
        damaged[random.integers(len(content))] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        try:
            load_image(path)
        except UserError as error:
            refused.append(str(error))
    assert len(refused) > 100  # a PNG has checksums
    assert all(str(path) in message for message in refused)


def test_pixels_without_a_range(tmp_path: Path) -> None:
    path = tmp_path / "float.tiff"
    Image.fromarray(np.ones((2, 2), np.float32)).save(path)

    _assert_refused(path, "no fixed range")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    _assert_refused(tmp_path / "nowhere.jpg", "cannot be read: No such file")
    _assert_refused(tmp_path, "cannot be read: Is a directory")


def _assert_refused(path: Path, reason: str) -> None:
    with pytest.raises(UserError) as error:
        load_image(path)
    assert str(path) in str(error.value)
    assert reason in str(error.value)


def test_postscript_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would start Ghostscript for EPS, whatever the file's name."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was started"))
    with pytest.raises(UserError, match=r"photo\.jpg cannot be decoded .* none of the formats JPEG, PNG, "):
        load_image(path)


def test_a_small_file_with_too_many_pixels(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (9_000, 9_000)).save(path)
    assert path.stat().st_size < 20_000
    with pytest.raises(UserError, match=r"bomb\.png .* it has 9,000 x 9,000 pixels, more than 67,108,864"):
        load_image(path)
