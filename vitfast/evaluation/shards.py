"""Results for a collection of images in shards: one file for each ``shard_size`` images, complete or absent.

A shard is written under a temporary name, flushed to the disk and renamed. A process that is killed at any moment and
started again skips the shards that exist, after comparing their paths with the collection, and computes the others; a
shard's content depends on its images only.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitfast.data.collection import StoredImage, import_pyarrow
from vitfast.errors import UserError, explain_os_error
from vitfast.evaluation.row_functions import Columns, RowFunction
from vitfast.files import atomic_file, read_text

RECORD = "shards.json"
# format -> file of a shard's rows; "npy" is the layout of clip-retrieval, whose other files are written before
PART_FILES = {
    "parquet": "part-{:05}.parquet",
    "jsonl": "part-{:05}.jsonl",
    "npy": "metadata/metadata_{:05}.parquet",
}
_EMBEDDINGS = "img_emb/img_emb_{:05}.npy"


@dataclass(frozen=True)
class Shard:
    """A shard of a collection.

    Attributes:
        number: from 0.
        images: its images.
    """

    number: int
    images: Sequence[StoredImage]


def split_shards(images: Iterable[StoredImage], shard_size: int) -> Iterator[Shard]:
    """Divides a collection into shards of ``shard_size`` images; the last one may be smaller."""
    iterator = iter(images)
    for number in itertools.count():
        part = list(itertools.islice(iterator, shard_size))
        if not part:
            return
        yield Shard(number, part)


def compute_rows(
    shard: Shard, function: RowFunction, batch_size: int, threads: int, report: Callable[[int], object] = lambda _: None
) -> Columns:
    """Reads the images of a shard and computes its rows.

    Threads read and decode a batch at a time. On a CPU the model waits for them, because both use all cores; on a GPU
    the next batch is read while the model runs.

    Args:
        shard: the images.
        function: computes their rows.
        batch_size: images in a batch.
        threads: that read and decode.
        report: called with the number of images after each batch.

    Returns:
        The columns ``path``, ``sha256`` (None if there are no bytes), those of ``function`` (None for unreadable
        images) and ``error`` (None for the others).
    """
    rows: Columns = {name: [] for name in ("path", "sha256", *function.columns, "error")}
    ahead = 1 if function.device.type == "cuda" else 0
    batches = [shard.images[first : first + batch_size] for first in range(0, len(shard.images), batch_size)]
    with ThreadPoolExecutor(threads) as pool:
        reading = [[pool.submit(function.read, image) for image in batch] for batch in batches[:ahead]]
        for number, batch in enumerate(batches):
            reading += [[pool.submit(function.read, image) for image in one] for one in batches[number + ahead :][:1]]
            read = [future.result() for future in reading.pop(0)]
            pixels = [image for _, image, _ in read if image is not None]
            computed = function(torch.stack(pixels)) if pixels else {name: [] for name in function.columns}
            values = {name: iter(column) for name, column in computed.items()}
            for stored, (sha256, image, error) in zip(batch, read, strict=True):
                rows["path"].append(stored.path)
                rows["sha256"].append(sha256)
                rows["error"].append(error)
                for name in function.columns:
                    rows[name].append(None if image is None else next(values[name]))
            report(len(batch))
    return rows


class ShardFolder:
    """The folder of a collection's results.

    Args:
        folder: created if missing.
        format: of ``PART_FILES``.
        function: whose results it holds.
        record: what determines the results, as JSON; a folder with another record is refused.
        source: what ``python -m vitfast.search`` needs to load the model, as JSON.

    Raises:
        UserError: the folder holds results of other options, or cannot be written, or pyarrow is missing.
    """

    def __init__(
        self, folder: Path, format: str, function: RowFunction, record: dict[str, Any], source: dict[str, Any]
    ) -> None:
        if format != "jsonl":
            import_pyarrow(f"format={format}")
        self.folder, self.format = folder, format
        self._columns, self._width = dict(function.columns), function.width
        record = json.loads(json.dumps({"format": format, "columns": self._columns, "width": self._width, **record}))
        file = folder / RECORD
        with explain_os_error(f"output={folder} cannot be written"):
            for name in (PART_FILES[format], *([_EMBEDDINGS] if format == "npy" else [])):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if file.exists():
                self._compare(read_record(folder), record)
            elif any(folder.glob("part-*")) or any(folder.glob("*/*")):
                raise UserError(f"output={folder} holds files, but no {RECORD}; choose a new folder")
            else:
                with atomic_file(file) as temporary:
                    temporary.write_text(json.dumps({**record, "source": source}, indent=2))

    def _compare(self, found: dict[str, Any], record: dict[str, Any]) -> None:
        for name, value in record.items():
            if found.get(name) != value:
                raise UserError(
                    f"output={self.folder} holds results of other options: {name} is {found.get(name)}, now {value}; "
                    "choose a new folder, or repeat the command that it was begun with"
                )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Excludes other processes of this machine from the folder, and removes what a killed one left unfinished."""
        if os.name == "posix":
            import fcntl

            descriptor = os.open(self.folder, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(descriptor)
                raise UserError(f"output={self.folder} is being written by another process; wait for it") from error
        try:
            for leftover in (*self.folder.glob(".*.writing"), *self.folder.glob("*/.*.writing")):
                leftover.unlink(missing_ok=True)
            yield
        finally:
            if os.name == "posix":
                os.close(descriptor)

    def part(self, number: int) -> Path:
        """Returns the file of a shard's rows."""
        return self.folder / PART_FILES[self.format].format(number)

    def holds(self, shard: Shard) -> bool:
        """Whether a shard is complete.

        Raises:
            UserError: it holds other images, or is damaged.
        """
        file = self.part(shard.number)
        if not file.exists():
            return False
        if read_rows(file, ["path"])["path"] != [image.path for image in shard.images]:
            raise UserError(
                f"{file} holds other images than the collection now has in this place; the images have changed since, "
                "or shard_size has: choose a new output folder"
            )
        return True

    def check_last(self, shards: int) -> None:
        """Raises UserError if there is a shard beyond the number of shards of the collection."""
        if (file := self.part(shards)).exists():
            raise UserError(f"{file} is left from a larger collection; choose a new output folder")

    def write(self, shard: Shard, rows: Columns) -> None:
        """Writes a shard; its rows file appears last, complete.

        Raises:
            UserError: it cannot be written.
        """
        file = self.part(shard.number)
        with explain_os_error(f"{file} cannot be written"):
            if self.format == "npy":
                self._write_embeddings(shard.number, rows)
                rows = {name: column for name, column in rows.items() if self._columns.get(name) != "vector"}
            with atomic_file(file) as temporary:
                if self.format == "jsonl":
                    with open(temporary, "w", encoding="utf-8") as stream:
                        for values in zip(*rows.values(), strict=True):
                            plain = (one.tolist() if isinstance(one, np.ndarray) else one for one in values)
                            stream.write(json.dumps(dict(zip(rows, plain, strict=True))) + "\n")
                else:
                    self._write_parquet(temporary, rows)

    def _write_embeddings(self, number: int, rows: Columns) -> None:
        """Writes the vectors ``[N, C]``; those of unreadable images are zero."""
        (name,) = (name for name, kind in self._columns.items() if kind == "vector")
        zero = np.zeros(self._width, np.float32)
        vectors = np.stack([zero if value is None else value for value in rows[name]])
        with atomic_file(self.folder / _EMBEDDINGS.format(number)) as temporary, open(temporary, "wb") as stream:
            np.save(stream, vectors)

    def _write_parquet(self, file: Path, rows: Columns) -> None:
        pyarrow = import_pyarrow(f"format={self.format}")
        table = to_table(rows, self._columns, self._width)
        if self.format == "npy":
            table = table.rename_columns({"path": "image_path"})  # clip-retrieval's name
        pyarrow.parquet.write_table(table, file)


def to_table(rows: Columns, columns: dict[str, str], width: int) -> Any:
    """Returns rows as ``pyarrow.Table``.

    Args:
        rows: values by column.
        columns: the kinds of some columns, as in ``RowFunction``; the others are texts.
        width: as in ``RowFunction``.
    """
    pyarrow = import_pyarrow("a table")
    types = {
        "vector": pyarrow.list_(pyarrow.float32(), width),
        "numbers": pyarrow.list_(pyarrow.float32()),
        "texts": pyarrow.list_(pyarrow.string()),
        "integer": pyarrow.int32(),
    }
    kinds = {name: types[columns[name]] if name in columns else pyarrow.string() for name in rows}
    return pyarrow.table({name: pyarrow.array(values, kinds[name]) for name, values in rows.items()})


def read_record(folder: Path) -> dict[str, Any]:
    """Reads what determines the results in a folder.

    Raises:
        UserError: it holds no results.
    """
    try:
        record = json.loads(read_text(folder / RECORD))
        if record["format"] not in PART_FILES:
            raise ValueError(f"format {record['format']!r}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{folder} holds no results of python -m vitfast.embed: {RECORD} cannot be read ({error})"
        ) from error
    found: dict[str, Any] = record
    return found


def part_files(folder: Path) -> list[Path]:
    """Lists the files of rows in a folder of results, in order."""
    name = Path(PART_FILES[read_record(folder)["format"]])
    return sorted((folder / name.parent).glob(name.name.replace("{:05}", "*")))


def read_rows(file: Path, columns: Sequence[str]) -> Columns:
    """Reads columns of a shard; vectors are arrays ``[C]``, or None.

    Raises:
        UserError: it is damaged.
    """
    try:
        if file.suffix == ".jsonl":
            lines = [json.loads(line) for line in read_text(file).splitlines()]
            return {name: [line[name] for line in lines] for name in columns}
        pyarrow = import_pyarrow(str(file))
        is_npy = file.parent.name == "metadata"
        stored = {name: "image_path" if name == "path" and is_npy else name for name in columns}
        if is_npy:
            stored.pop("embedding", None)
        table = pyarrow.parquet.read_table(file, columns=[*stored.values()], partitioning=None)
        rows: Columns = {name: _to_list(table.column(column)) for name, column in stored.items()}
        if is_npy and "embedding" in columns:
            number = file.stem.rpartition("_")[2]
            rows["embedding"] = list(np.load(file.parents[1] / _EMBEDDINGS.replace("{:05}", number)))
        return rows
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:  # ArrowInvalid is a ValueError
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file} is damaged: {error}; delete it, and repeat the command that wrote it") from error


def _to_list(column: Any) -> list[Any]:
    """Returns the values of a column of Arrow; vectors as arrays."""
    width = getattr(column.type, "list_size", None)
    if width is None:
        values: list[Any] = column.to_pylist()
        return values
    vectors = iter(column.combine_chunks().flatten().to_numpy().reshape(-1, width))  # without those that are null
    return [next(vectors) if valid else None for valid in column.is_valid().to_pylist()]
