"""Reading one image file."""

from __future__ import annotations

import functools
import os
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vitfast.errors import UserError
from vitfast.files import open_regular

_MODES = {1: "L", 3: "RGB"}
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif")
# without a list, Pillow tries all of its decoders, of which that of EPS runs Ghostscript on the file
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
# a compressed file of a few kilobytes can claim any size; this many need 200 MB in RGB
MAX_PIXELS = 1 << 26


def load_image(path: str | os.PathLike[str], in_chans: int = 3) -> Image.Image:
    """Reads an image as grey or RGB, with the EXIF orientation applied; the format is detected from the content.

    JPEG, PNG, WebP, BMP, GIF, TIFF, PPM and, with a Pillow that has it, AVIF are read, up to ``MAX_PIXELS``.
    Transparency is dropped, as in torchvision and timm; 16-bit grey is reduced to its upper 8 bits. Of an animation
    the first frame is read.

    Args:
        path: the file.
        in_chans: 1 for grey (mode ``L``), 3 for RGB.

    Returns:
        The decoded image, 8 bits per channel.

    Raises:
        UserError: if the file cannot be read or decoded; the message gives the file and the reason.
    """
    try:
        stream = open_regular(path)
    except OSError as error:
        raise UserError(f"{os.fspath(path)} cannot be read: {error.strerror}") from error
    with stream:
        return decode_image(stream, os.fspath(path), in_chans)


def decode_image(stream: BinaryIO, name: str, in_chans: int = 3, shrink_to: int | None = None) -> Image.Image:
    """Decodes an image from a stream, as ``load_image``.

    Args:
        stream: the encoded image, which can be searched.
        name: for errors.
        in_chans: as in ``load_image``.
        shrink_to: pixels of the shorter side that suffice; a JPEG is then decoded at 1/2, 1/4 or 1/8 of its size, if
            its sides stay at least as long, which takes a fraction of the time. None: the whole image.
    """
    try:
        with Image.open(stream, formats=_supported_formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f"it has {image.width:,} x {image.height:,} pixels, more than {MAX_PIXELS:,}; scale it down"
                )
            if shrink_to is not None:
                image.draft(None, (shrink_to, shrink_to))
            image.load()
            return _convert(_upright(image), _MODES[in_chans])
    except OSError as error:
        if error.errno is not None:  # an error of the file system, not of the decoder
            raise UserError(f"{name} cannot be read: {error.strerror}") from error
        raise _undecodable(stream, name, error) from error
    except Exception as error:  # decoders raise SyntaxError, ValueError, struct.error, DecompressionBombError, …
        raise _undecodable(stream, name, error) from error


@functools.cache
def _supported_formats() -> list[str]:
    """Those of the formats that this Pillow has."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _undecodable(stream: BinaryIO, name: str, error: Exception) -> UserError:
    if stream.seek(0, os.SEEK_END) == 0:
        reason = "the file is empty"
    elif isinstance(error, UnidentifiedImageError):
        reason = f"its content is none of the formats {', '.join(_FORMATS)}"
    else:
        reason = str(error) or type(error).__name__
    return UserError(f"{name} cannot be decoded as an image: {reason}; replace or remove the file")


def _upright(image: Image.Image) -> Image.Image:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # invalid EXIF data: keep the orientation
        pass
    return image


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"its pixels (mode {image.mode}) have no fixed range; save it with 8 or 16 bits per channel")
    elif "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert(mode)  # a copy, valid after the file is closed
