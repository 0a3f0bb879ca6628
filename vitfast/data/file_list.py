"""Image lists in myrtle-vision's layout of RESISC45: ``root/train_imagepaths.txt`` etc. and ``label_map.json``."""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath

from vitfast.data.image_source import FileSource
from vitfast.errors import UserError
from vitfast.files import read_text

LIST_FILES = {"train": "train_imagepaths.txt", "val": "valid_imagepaths.txt", "test": "test_imagepaths.txt"}
LABEL_MAP = "label_map.json"


class FileList(FileSource):
    """The images of a list.

    A line of a list is the path of an image relative to ``root``; its folder is its class. ``label_map.json`` maps each
    class to its number, 0 to K - 1.

    Args:
        root: the folder of the lists.
        split: ``"train"``, ``"val"`` (``valid_imagepaths.txt``) or ``"test"``.

    Raises:
        UserError: if a file is missing, or a class is not in ``label_map.json``.
    """

    def __init__(self, root: str | os.PathLike[str], split: str) -> None:
        folder = Path(root).expanduser()
        if split not in available_splits(root):
            raise UserError(f"data.root={root} has no {LIST_FILES[split]}")
        numbers = _label_map(folder / LABEL_MAP)
        paths: list[bytes] = []
        labels: list[int] = []
        file = folder / LIST_FILES[split]
        try:
            lines = read_text(file).splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{file} cannot be read: {error}; it must be UTF-8 text with a path in each line"
            ) from error
        for line_number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            if "\0" in line:
                raise UserError(f"{file}, line {line_number} contains a NUL character; it must be the path of an image")
            name = PurePosixPath(line.strip()).parent.name
            if name not in numbers:
                raise UserError(
                    f"{file}, line {line_number}: {line.strip()} is in the folder {name!r}, which is not a class of "
                    f"{LABEL_MAP}"
                )
            paths.append(os.fsencode(line.strip()))
            labels.append(numbers[name])
        if not paths:
            raise UserError(f"{file} lists no images")
        super().__init__(folder, paths, labels, sorted(numbers, key=numbers.__getitem__))


def available_splits(root: str | os.PathLike[str]) -> list[str]:
    """Lists the available splits of train, val and test.

    Raises:
        UserError: if there is none.
    """
    folder = Path(root).expanduser()
    splits = [split for split, name in LIST_FILES.items() if (folder / name).is_file()]
    if not splits:
        raise UserError(
            f"data.root={root} has none of {', '.join(LIST_FILES.values())}; "
            "python -m vitfast.prepare creates them for RESISC45"
        )
    return splits


def _label_map(file: Path) -> dict[str, int]:
    try:
        numbers = json.loads(read_text(file))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f'{file} cannot be read: {error}; it must contain {{"CLASS": NUMBER, …}}') from error
    if not isinstance(numbers, dict) or sorted(map(str, numbers.values())) != sorted(map(str, range(len(numbers)))):
        last = len(numbers) - 1 if isinstance(numbers, dict) else "K - 1"
        raise UserError(f"{file} must map the classes to the numbers 0 to {last}, each once")
    return {str(name): int(number) for name, number in numbers.items()}
