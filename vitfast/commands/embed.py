"""``vitfast embed``: writes embeddings of a collection of images, in shards.

Images that cannot be read become rows with an error. A run that was killed continues when it is started again.

Exit code: 0 if every image is in one of the files; 2 after a user error.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

from vitfast import __version__
from vitfast.commands.command_options import CollectionOptions, EmbedOptions
from vitfast.data.collection import list_images
from vitfast.evaluation.feature_files import content_digest
from vitfast.evaluation.row_functions import Embedder, RowFunction
from vitfast.evaluation.shards import ShardFolder, compute_rows, split_shards
from vitfast.runs.trained_model import TrainedModel
from vitfast.training.progress import progress_bar


def run(options: EmbedOptions) -> int:
    """Runs the command; returns the exit code."""
    list_images(options.images)  # errors come before the model is loaded
    trained = options.load(headless=True)
    function = Embedder(
        trained, normalize=options.normalize, precision=options.precision, shrink_jpeg=options.shrink_jpeg
    )
    return write_collection(options, options.output, trained, function)


def write_collection(options: CollectionOptions, output: str, trained: TrainedModel, function: RowFunction) -> int:
    """Writes the results of all images that are not in the folder yet, and prints a line for each shard."""
    source = {"vitfast": __version__, **{name: getattr(options, name) for name in ("checkpoint", "model", "weights")}}
    record = {
        "shard_size": options.shard_size,
        "model": trained.name,
        "weights_sha256": content_digest(trained.model.state_dict().items()),
        "preprocessing": trained.data,
        **function.record(),
    }
    folder = ShardFolder(
        Path(output).expanduser(), options.format, function, record, {**source, "vitfast": __version__}
    )
    done = computed = unreadable = shards = 0
    with folder.locked(), progress_bar(None, enabled=True) as bar:
        _count_images(options.images, bar)
        for shard in split_shards(list_images(options.images), options.shard_size):
            shards, done = shards + 1, done + len(shard.images)
            if folder.holds(shard):
                bar.initial = bar.n = done
                bar.refresh()
                continue
            start = time.monotonic()
            rows = compute_rows(shard, function, options.batch_size, torch.get_num_threads(), bar.update)
            folder.write(shard, rows)
            errors = [error for error in rows["error"] if error is not None]
            speed = len(shard.images) / (time.monotonic() - start)
            text = f"{folder.part(shard.number)}  {len(shard.images):,} images, {speed:.1f} images/s"
            bar.write(text + (f", {len(errors):,} unreadable: {errors[0]}" if errors else ""), file=sys.stdout)
            sys.stdout.flush()
            computed, unreadable = computed + len(shard.images), unreadable + len(errors)
        folder.check_last(shards)
    print(
        f"{done:,} images in {shards:,} files of {folder.folder}; {computed:,} of them computed now"
        + (f", {unreadable:,} unreadable (column error)" if unreadable else "")
    )
    return 0


def _count_images(images: str, bar: Any) -> None:
    """Counts the images for the bar's remaining time, beside the work: a large collection takes minutes."""

    def count() -> None:
        bar.total = sum(1 for _ in list_images(images))

    if not bar.disable:
        threading.Thread(target=count, daemon=True).start()
