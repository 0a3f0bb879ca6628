"""Collections of images: files, folders, patterns, lists, tar and Parquet files, listed one after another."""

from __future__ import annotations

import functools
import glob
import io
import itertools
import os
import tarfile
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vitfast.data.image_file import IMAGE_EXTENSIONS, decode_image
from vitfast.errors import UserError, explain_os_error, import_optional
from vitfast.files import open_regular

LIST, TAR, PARQUET = ".txt", ".tar", ".parquet"
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_IMAGE_COLUMNS = ("image", "img", "bytes", "content", "jpg", "jpeg", "png", "webp")
_ROWS = 64  # of a Parquet file that are decoded at a time
_MAX_BYTES = 1 << 28  # an uncompressed image of the most pixels that are decoded is smaller


@dataclass(frozen=True)
class StoredImage:
    """The place of an encoded image.

    Attributes:
        path: its name in results: that of the file; of an image in a tar or Parquet file ``FILE/MEMBER`` or
            ``FILE/ROW``.
        file: the file to open.
        offset: its first byte, in a tar file.
        size: its length in bytes; None: the whole file.
        row: its row in a Parquet file; None: no Parquet file.
    """

    path: str
    file: str
    offset: int = 0
    size: int | None = None
    row: int | None = None

    def read(self) -> bytes:
        """Returns the encoded image.

        Raises:
            UserError: it cannot be read.
        """
        if self.row is not None:
            content = _open_parquet(self.file).read(self.row)
            if content is None:
                raise UserError(f"{self.path} cannot be read: the row has no image")
            return content
        if "\0" in self.file:
            raise UserError(f"{self.path!r} cannot be read: the name contains a NUL character")
        with explain_os_error(f"{self.path} cannot be read"), open_regular(self.file) as stream:
            size = os.fstat(stream.fileno()).st_size if self.size is None else self.size
            if size > _MAX_BYTES:
                raise UserError(f"{self.path} has {size:,} bytes, more than {_MAX_BYTES:,}; scale the image down")
            stream.seek(self.offset)
            return stream.read(size)

    def load(self, in_chans: int = 3) -> Image.Image:
        """Reads and decodes the image, as ``load_image``."""
        return decode_image(io.BytesIO(self.read()), self.path, in_chans)


def list_images(images: str, option: str = "images") -> Iterator[StoredImage]:
    """Lists the images of a collection, each once, in an order that does not change.

    Folders are searched recursively for image files, in the order of their names. Neither they nor lists, tar and
    Parquet files are held in memory, but the file names that a pattern matches are.

    Args:
        images: separated by commas: image files; folders; patterns such as ``shards/*.tar``; text files (``.txt``) with
            a path in each line, relative to the list; tar files, whose members with the suffix of an image are read;
            Parquet files with a column of encoded images, binary or ``{bytes, path}`` as of Hugging Face's datasets.
            A single existing path may contain commas.
        option: name of the command's option, for errors.

    Returns:
        An iterator, which raises UserError for a damaged list, tar or Parquet file.

    Raises:
        UserError: an entry does not exist or is empty.
    """
    entries = [images] if os.path.exists(images) else [entry for entry in images.split(",") if entry]
    found: list[tuple[bool, list[str]]] = []
    for entry in entries:
        if os.path.isdir(entry):
            if next(_walk(str(Path(entry))), None) is None:
                raise UserError(
                    f"{option}={entry}: the folder holds no image ({', '.join(IMAGE_EXTENSIONS)}); "
                    f"tar and Parquet files are given as {os.path.join(entry, '*.tar')}"
                )
            found.append((True, [str(Path(entry))]))
        elif os.path.exists(entry):
            found.append((False, [str(Path(entry))]))
        elif glob.has_magic(entry):
            matching = sorted(str(Path(name)) for name in glob.iglob(entry, recursive=True) if os.path.isfile(name))
            if not matching:
                raise UserError(f"{option}={entry} matches no file")
            found.append((False, matching))
        else:
            raise UserError(f"{option}={entry} does not exist; separate several paths by commas, without spaces")
    listed = _list_entries(found)
    first = next(listed, None)
    if first is None:
        raise UserError(f"{option}={images} holds no image ({', '.join(IMAGE_EXTENSIONS)})")
    return itertools.chain([first], listed)


def find_stored(path: str) -> StoredImage:
    """Finds an image by its ``path``.

    Raises:
        UserError: it is not where it was.
    """
    for file in (Path(path), *Path(path).parents):
        if file.is_file():
            for stored in _expand(str(file)) if str(file) != path else [StoredImage(path, path)]:
                if stored.path == path:
                    return stored
    raise UserError(f"{path} does not exist any more; relative paths start from the folder where the index was written")


def _list_entries(entries: list[tuple[bool, list[str]]]) -> Iterator[StoredImage]:
    """Yields the images of folders and of files; each of them is given as (whether it is a folder, paths)."""
    folders: list[str] = []
    files: set[str] = set()
    for is_folder, paths in entries:
        for path in _walk(paths[0]) if is_folder else paths:
            normal = os.path.normpath(path)
            if normal not in files and not normal.startswith(tuple(folders)):
                yield from [StoredImage(_readable(path), path)] if is_folder else _expand(path)
                if not is_folder:
                    files.add(normal)
        if is_folder:
            folder = os.path.normpath(paths[0])
            folders.append("" if folder == os.curdir else os.path.join(folder, ""))


def _walk(folder: str) -> Iterator[str]:
    """Yields the image files below a folder in the order of their paths; links to folders are not followed."""
    with explain_os_error(f"{folder} cannot be read"), os.scandir(folder) as inside:
        # a folder's name sorts as the beginning of its paths does
        entries = sorted((one.name + os.sep * one.is_dir(follow_symlinks=False), one.path) for one in inside)
    for name, path in entries:
        if name.endswith(os.sep):
            yield from _walk(path)
        elif name.lower().endswith(IMAGE_EXTENSIONS):
            yield path.removeprefix(os.path.join(os.curdir, ""))


def _expand(file: str, *, in_list: bool = False) -> Iterator[StoredImage]:
    """Yields the images in a file."""
    lower = file.lower()
    if lower.endswith(_COMPRESSED):
        raise UserError(f"{file} is compressed, so that its images cannot be read one by one; decompress it to {TAR}")
    if lower.endswith(TAR):
        yield from _tar_members(file)
    elif lower.endswith(PARQUET):
        for row in range(_open_parquet(file).num_rows):
            yield StoredImage(f"{_readable(file)}/{row}", file, row=row)
    elif lower.endswith(LIST) and not in_list:
        with explain_os_error(f"{file} cannot be read"):
            lines = open_regular(file)
        with lines:
            for line in lines:
                if name := os.fsdecode(line.strip()):
                    yield from _expand(os.path.join(os.path.dirname(file), name), in_list=True)
    else:
        yield StoredImage(_readable(file), file)


def _tar_members(file: str) -> Iterator[StoredImage]:
    with explain_os_error(f"{file} cannot be read"):
        stream = open_regular(file)
    with stream:
        try:
            archive: Any = tarfile.open(fileobj=stream, mode="r:")
            while (member := archive.next()) is not None:
                archive.members.clear()  # which would grow with the file
                if member.isreg() and member.name.lower().endswith(IMAGE_EXTENSIONS):
                    path = f"{_readable(file)}/{_readable(member.name)}"
                    yield StoredImage(path, file, member.offset_data, member.size)
        except tarfile.TarError as error:
            raise UserError(f"{file} is no tar file, or damaged: {error}; replace or remove it") from error


def _readable(path: str) -> str:
    """Returns a path as text that can be encoded; other bytes are written in hexadecimal digits."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def import_pyarrow(what: str) -> Any:
    """Imports pyarrow and ``pyarrow.parquet``.

    Raises:
        UserError: it is not installed; ``what`` needs it.
    """
    import_optional("pyarrow.parquet", what, "parquet")
    return import_optional("pyarrow", what, "parquet")


@functools.lru_cache(maxsize=2)
def _open_parquet(file: str) -> _ParquetImages:
    return _ParquetImages(file)


class _ParquetImages:
    """The encoded images of a Parquet file, which are read fastest in the order of their rows."""

    def __init__(self, file: str) -> None:
        self._pyarrow = import_pyarrow(f"images={file}")
        try:
            self._parquet = self._pyarrow.parquet.ParquetFile(file)
        except (OSError, self._pyarrow.ArrowException) as error:
            raise UserError(f"{file} is no Parquet file, or damaged: {error}; replace or remove it") from error
        self._file = file
        self.num_rows: int = self._parquet.metadata.num_rows
        self._column = self._choose_column()
        self._lock = threading.Lock()
        self._recent: deque[tuple[int, Any]] = deque(maxlen=4)  # first row, images
        self._batches: Iterator[Any] = iter(())
        self._next_row = self.num_rows

    def read(self, row: int) -> bytes | None:
        """Returns an image; None if the row has none."""
        with self._lock:
            try:
                while True:
                    for first, images in self._recent:
                        if first <= row < first + len(images):
                            value = images[row - first].as_py()
                            content: bytes | None = value["bytes"] if isinstance(value, dict) else value
                            return content
                    if not self._next_row <= row < self._next_row + 2 * _ROWS:
                        self._seek(row)
                    images = next(self._batches).column(0)
                    self._recent.append((self._next_row, images))
                    self._next_row += len(images)
            except (OSError, self._pyarrow.ArrowException) as error:
                raise UserError(f"{self._file}/{row} cannot be read: {error}; replace the file") from error

    def _seek(self, row: int) -> None:
        """Continues at the row group of a row, unless the row is ahead of the place in its group."""
        metadata, first, group = self._parquet.metadata, 0, 0
        while row >= first + metadata.row_group(group).num_rows:
            first += metadata.row_group(group).num_rows
            group += 1
        if first <= self._next_row <= row:
            return
        groups = range(group, metadata.num_row_groups)
        self._batches = self._parquet.iter_batches(_ROWS, row_groups=groups, columns=[self._column])
        self._next_row = first

    def _choose_column(self) -> str:
        types, schema = self._pyarrow.types, self._parquet.schema_arrow

        def is_bytes(kind: Any) -> bool:
            if types.is_struct(kind):
                place = kind.get_field_index("bytes")
                return place >= 0 and is_bytes(kind.field(place).type)
            return bool(types.is_binary(kind) or types.is_large_binary(kind))

        fitting = [field.name for field in schema if is_bytes(field.type)]
        named = [name for name in _IMAGE_COLUMNS if name in fitting]
        if not named and len(fitting) != 1:
            raise UserError(
                f"{self._file} has the columns {', '.join(schema.names)}; one of {', '.join(_IMAGE_COLUMNS)} must hold "
                "encoded images (binary, or a struct with the field bytes)"
            )
        return named[0] if named else fitting[0]
