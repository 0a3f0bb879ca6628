"""Image files given on the command line: found by path and read in batches."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vitfast.data import eval_transform, load_image
from vitfast.data.image_file import IMAGE_EXTENSIONS
from vitfast.errors import UserError
from vitfast.runs.trained_model import PREPROCESSING, TrainedModel


def find_images(images: str) -> list[Path]:
    """Returns the given image files and the sorted images of the given folders, without duplicates.

    Args:
        images: files, folders and patterns such as ``photos/*.jpg``, separated by commas; a single existing path may
            contain commas.

    Raises:
        UserError: an entry does not exist, or a folder contains no image.
    """
    entries = [images] if os.path.exists(images) else [entry for entry in images.split(",") if entry]
    found: list[Path] = []
    for entry in entries:
        path = Path(entry)
        if os.path.isdir(path):
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_EXTENSIONS)
            if not inside:
                raise UserError(f"images={entry}: the folder holds no image ({', '.join(IMAGE_EXTENSIONS)})")
            found += inside
        elif os.path.exists(path):
            found.append(path)
        elif glob.has_magic(entry):
            matching = sorted(Path(name) for name in glob.iglob(entry, recursive=True) if os.path.isfile(name))
            if not matching:
                raise UserError(f"images={entry} matches no file")
            found += matching
        else:
            raise UserError(f"images={entry} does not exist; separate several paths by commas, without spaces")
    return list(dict.fromkeys(found))


def read_batches(
    trained: TrainedModel, paths: Sequence[Path], batch_size: int, skipped: list[Path]
) -> Iterator[tuple[list[Path], Tensor]]:
    """Reads files with the preprocessing of a checkpoint.

    Args:
        trained: the model.
        paths: image files.
        batch_size: images in a batch.
        skipped: receives the files that cannot be read; the reason is printed on stderr.

    Yields:
        Paths and images ``[B, in_chans, img_size, img_size]`` of the readable files, in order, on the model's device.
    """
    transform = eval_transform(**{name: trained.data[name] for name in PREPROCESSING})
    for first in range(0, len(paths), batch_size):
        batch: list[tuple[Path, Tensor]] = []
        for path in paths[first : first + batch_size]:
            try:
                batch.append((path, transform(load_image(path, trained.data["in_chans"]))))
            except (UserError, OSError) as error:
                skipped.append(path)
                reason = str(error) if str(path) in str(error) else f"{path}: {error}"
                print(f"skipped: {reason}", file=sys.stderr, flush=True)
        if batch:
            yield [path for path, _ in batch], torch.stack([image for _, image in batch]).to(trained.device)


def restore_pixels(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Undoes the normalization of images ``[..., C, H, W]``; returns values in 0..1 on the CPU."""
    mean_C11, std_C11 = (torch.tensor(list(values), dtype=images.dtype)[:, None, None] for values in (mean, std))
    return (images.cpu() * std_C11 + mean_C11).clamp(0, 1)


def report_skipped(skipped: Sequence[Path], total: int) -> int:
    """Prints on stderr how many images could not be read; returns the exit code: 0, or 1 if there are any."""
    if skipped:
        print(f"{len(skipped)} of {total} images could not be read", file=sys.stderr, flush=True)
    return 1 if skipped else 0
