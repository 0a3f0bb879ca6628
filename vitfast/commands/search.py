"""``vitfast search``: the images of an index that are most similar to given ones, or to each other.

The index is a folder of ``vitfast embed``. Its model embeds ``image=``; without it, groups of near-duplicates in the
index are printed.

Exit code: 0; 1 if a given image could not be read; 2 after a user error.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import ImageOps
from torch import Tensor

from vitfast.commands.command_options import SearchOptions
from vitfast.data.collection import StoredImage, find_stored, list_images
from vitfast.device import select_device
from vitfast.errors import UserError, explain_os_error
from vitfast.evaluation.feature_files import content_digest
from vitfast.evaluation.plots import draw_neighbours
from vitfast.evaluation.pretrained import load_any
from vitfast.evaluation.row_functions import Embedder
from vitfast.evaluation.search import knn, near_duplicates
from vitfast.evaluation.shards import Shard, compute_rows, read_record

Group = list[tuple[str, float]]  # an image, then images with their similarity to it
_ROWS, _COLUMNS, _PIXELS = 40, 12, 160  # of the contact sheet
_NAME = 10  # characters


def run(options: SearchOptions) -> int:
    """Runs the command; returns the exit code."""
    folder = Path(options.index).expanduser()
    unreadable = 0
    if options.image is None:
        groups = near_duplicates(folder, options.threshold)
        title = f"{folder}: {len(groups):,} groups of similarity {options.threshold:g} or more"
    else:
        images = list(list_images(options.image, "image"))
        groups, unreadable = _neighbours(options, folder, images)
        title = f"nearest images in {folder}"
    for group in groups:
        print(_text(group) if options.output == "table" else json.dumps([[*pair] for pair in group]), flush=True)
    if options.image is None and options.output == "table":
        print(title)
    if options.picture is not None and groups:
        with explain_os_error(f"picture={options.picture} cannot be written"):
            rows = [
                [(_thumbnail(path), _short(path), value) for path, value in group[:_COLUMNS]]
                for group in groups[:_ROWS]
            ]
            draw_neighbours([(row[0][:2], row[1:]) for row in rows], options.picture, title, classes=False)
    return 1 if unreadable else 0


def _neighbours(options: SearchOptions, folder: Path, images: list[StoredImage]) -> tuple[list[Group], int]:
    """Embeds images with the model of an index; returns the nearest ones of each, and how many cannot be read."""
    embedder = _load_embedder(options, folder)
    rows = compute_rows(Shard(0, images), embedder, options.batch_size, torch.get_num_threads())
    for error in filter(None, rows["error"]):
        print(f"skipped: {error}", file=sys.stderr, flush=True)
    kept = [place for place, error in enumerate(rows["error"]) if error is None]
    if not kept:
        return [], len(images)
    found = knn(folder, torch.from_numpy(np.stack([rows["embedding"][place] for place in kept])), options.k)
    groups = [
        [(images[place].path, 1.0), *zip(paths, values, strict=True)]
        for place, paths, values in zip(kept, found.paths or [], found.similarity.tolist(), strict=True)
    ]
    return groups, len(images) - len(kept)


def _load_embedder(options: SearchOptions, folder: Path) -> Embedder:
    """Loads the model that wrote an index."""
    record = read_record(folder)
    source = {name: record["source"][name] for name in ("checkpoint", "model", "weights")}
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    trained = load_any(**source, device=select_device(options.device), headless=True, precision=record["precision"])
    if content_digest(trained.model.state_dict().items()) != record["weights_sha256"]:
        raise UserError(f"index={folder} was written with other weights than those of {trained.checkpoint} now")
    settings = {name: record[name] for name in ("normalize", "precision", "shrink_jpeg")}
    return Embedder(trained, **settings)


def _text(group: Group) -> str:
    first, *others = group
    return "\n".join([first[0], *(f"  {value:6.3f}  {path}" for path, value in others)])


def _thumbnail(path: str) -> Tensor:
    """Returns an image ``[C, H, W]`` on a white square, values in 0..1; grey if it cannot be read any more."""
    try:
        image = find_stored(path).load()
    except UserError:
        return torch.full((3, _PIXELS, _PIXELS), 0.8)
    square = ImageOps.pad(image, (_PIXELS, _PIXELS), color="white")
    return torch.from_numpy(np.array(square)).permute(2, 0, 1) / 255


def _short(path: str) -> str:
    name = Path(path).name
    return name if len(name) <= _NAME else f"…{name[-_NAME:]}"
