"""``vitfast embed``: writes embeddings of a collection of images, in shards.

Images that cannot be read become rows with an error. A run that was killed continues when it is started again.

Exit code: 0 if every image is in one of the files; 2 after a user error.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from vitfast import __version__
from vitfast.commands.command_options import CollectionOptions, EmbedOptions
from vitfast.data.collection import list_images
from vitfast.evaluation.feature_files import content_digest
from vitfast.evaluation.row_functions import Embedder, RowFunction
from vitfast.evaluation.shards import Shard, ShardFolder, compute_rows, split_shards
from vitfast.runs.trained_model import TrainedModel
from vitfast.training.progress import progress_bar

Options = TypeVar("Options", bound=CollectionOptions)


def run(options: EmbedOptions) -> int:
    """Runs the command; returns the exit code."""
    return write_collection(options, options.output, build_embedder)


def build_embedder(options: EmbedOptions) -> tuple[TrainedModel, Embedder]:
    """Loads the model."""
    trained = options.load(headless=True)
    settings = {name: getattr(options, name) for name in ("normalize", "precision", "shrink_jpeg")}
    return trained, Embedder(trained, **settings)


def write_collection(
    options: Options, output: str, build: Callable[[Options], tuple[TrainedModel, RowFunction]]
) -> int:
    """Writes the results of all images that are not in a folder yet, and prints a line for each shard.

    Args:
        options: of the command.
        output: the folder.
        build: loads the model; with ``engine=ray`` also in other processes.
    """
    list_images(options.images)  # errors come before the model is loaded
    trained, function = build(options)
    source = {"vitfast": __version__, **{name: getattr(options, name) for name in ("checkpoint", "model", "weights")}}
    record = {
        "shard_size": options.shard_size,
        "model": trained.name,
        "weights_sha256": content_digest(trained.model.state_dict().items()),
        "preprocessing": trained.data,
        **function.record(),
    }
    folder = ShardFolder(Path(output).expanduser().absolute(), options.format, function, record, source)
    with folder.locked(), progress_bar(None, enabled=True) as bar:
        _count_images(options.images, bar)
        progress = _Progress(folder, bar)
        missing = progress.missing(split_shards(list_images(options.images), options.shard_size))
        if options.engine == "ray":
            from vitfast.ray import write_shards

            for number, rows in write_shards(missing, options, build, folder):
                bar.update(len(rows["error"]))
                progress.report(number, rows["error"])
        else:
            for shard in missing:
                rows = compute_rows(shard, function, options.batch_size, torch.get_num_threads(), bar.update)
                folder.write(shard, rows)
                progress.report(shard.number, rows["error"])
        folder.check_last(progress.shards)
    print(progress.summary())
    return 0


class _Progress:
    """Counts images, and prints a line for each shard."""

    def __init__(self, folder: ShardFolder, bar: Any) -> None:
        self.shards = 0
        self._folder, self._bar = folder, bar
        self._images = self._computed = self._unreadable = 0
        self._start = time.monotonic()

    def missing(self, shards: Iterable[Shard]) -> Iterator[Shard]:
        """Yields the shards that the folder does not hold."""
        for shard in shards:
            self.shards, self._images = self.shards + 1, self._images + len(shard.images)
            if not self._folder.holds(shard):
                yield shard
            elif not self._bar.disable:  # not part of images/s
                self._bar.initial += len(shard.images)
                self._bar.n += len(shard.images)
                self._bar.refresh()

    def report(self, number: int, errors: Sequence[str | None]) -> None:
        """Prints the line of a written shard, given the errors of its images; images/s are the mean so far."""
        found = [error for error in errors if error is not None]
        self._computed, self._unreadable = self._computed + len(errors), self._unreadable + len(found)
        speed = self._computed / (time.monotonic() - self._start)
        text = f"{self._folder.part(number)}  {len(errors):,} images, {speed:.1f} images/s"
        self._bar.write(text + (f", {len(found):,} unreadable: {found[0]}" if found else ""), file=sys.stdout)
        sys.stdout.flush()

    def summary(self) -> str:
        """Returns the last line."""
        return (
            f"{self._images:,} images in {self.shards:,} files of {self._folder.folder}; {self._computed:,} of them "
            "computed now" + (f", {self._unreadable:,} unreadable (column error)" if self._unreadable else "")
        )


def _count_images(images: str, bar: Any) -> None:
    """Counts the images for the bar's remaining time, beside the work: a large collection takes minutes."""

    def count() -> None:
        bar.total = sum(1 for _ in list_images(images))

    if not bar.disable:
        threading.Thread(target=count, daemon=True).start()
