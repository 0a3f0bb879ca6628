"""Folders of images with a folder for each class: ``root/train/<class>/*`` and other splits, or ``root/<class>/*``."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from pathlib import Path

from vitfast.data.image_file import IMAGE_EXTENSIONS
from vitfast.data.image_source import FileSource
from vitfast.errors import UserError

SPLITS = ("train", "val", "test")


class ImageFolder(FileSource):
    """The images of one split of a folder.

    Classes and files are in alphabetical order; files may be in subfolders of their class. Hidden files and files
    without an image extension are ignored.

    Args:
        root: the folder of the splits.
        split: ``"train"``, ``"val"`` or ``"test"``.

    Raises:
        UserError: if a folder is missing, a class has no images, or the classes of the splits differ.
    """

    def __init__(self, root: str | os.PathLike[str], split: str) -> None:
        splits = available_splits(root)
        if split not in splits:
            raise UserError(f"data.root={root} has no folder {split!r}; it has {', '.join(splits)}")
        folder = _folder_of_split(Path(root).expanduser(), split)
        class_names = _class_names(folder)
        for other in splits:
            _require_same_classes(folder, class_names, _folder_of_split(Path(root).expanduser(), other))
        paths: list[bytes] = []
        labels: list[int] = []
        others: Counter[str] = Counter()
        for label, name in enumerate(class_names):
            found = _image_paths(folder, name, others)
            paths += found
            labels += [label] * len(found)
        if others:
            kinds = ", ".join(f"{count:,} {suffix or 'without extension'}" for suffix, count in others.most_common(5))
            text = f"{folder}: {others.total():,} files are left out, as their names are not those of images ({kinds})"
            warnings.warn(text, stacklevel=2)
        super().__init__(folder, paths, labels, class_names)


def available_splits(root: str | os.PathLike[str]) -> list[str]:
    """Lists the available splits of train, val and test; a folder of class folders is a train split.

    Raises:
        UserError: if the folder does not exist, or has neither.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise UserError(f"data.root={root} {what}; give the folder that contains train/CLASS/*.jpg")
    splits = [split for split in SPLITS if (folder / split).is_dir()]
    if not splits and any(_has_images(entry) for entry in folder.iterdir()):
        return ["train"]
    if not splits:
        inside = ", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "nothing"
        raise UserError(
            f"data.root={root} has none of the folders {', '.join(SPLITS)} (it contains {inside}); "
            "put images into ROOT/train/CLASS/ and ROOT/val/CLASS/, or into ROOT/CLASS/ with data.val_share"
        )
    return splits


def _folder_of_split(root: Path, split: str) -> Path:
    return root / split if (root / split).is_dir() else root


def _has_images(folder: Path) -> bool:
    return folder.is_dir() and any(file.suffix.lower() in IMAGE_EXTENSIONS for file in folder.iterdir())


def _class_names(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise UserError(f"{folder} has no class folders; images must be in {folder}/CLASS/")
    return names


def _require_same_classes(folder: Path, names: list[str], other: Path) -> None:
    other_names = _class_names(other)
    if names == other_names:
        return
    here, there = sorted(set(names) - set(other_names)), sorted(set(other_names) - set(names))
    differences = [
        f"only {where} has {', '.join(extra[:5])}" + (f" and {len(extra) - 5} more" if len(extra) > 5 else "")
        for where, extra in ((folder, here), (other, there))
        if extra
    ]
    raise UserError(
        f"the classes of {folder} and {other} differ: {'; '.join(differences)}; all splits need the same class folders"
    )


def _refuse_loop(directory: str) -> None:
    """Raises UserError for a link to a folder that contains it, which would repeat all images in it many times."""
    parents = Path(os.path.abspath(directory)).parents
    if os.path.islink(directory) and any(os.path.samefile(directory, parent) for parent in parents):
        raise UserError(f"{directory} is a link to {os.path.realpath(directory)}, which contains it; remove the link")


def _image_paths(folder: Path, class_name: str, others: Counter[str]) -> list[bytes]:
    """Lists the images of a class in alphabetical order, relative to ``folder``; counts other files by extension."""
    found: list[bytes] = []
    for directory, subdirectories, names in os.walk(folder / class_name, followlinks=True):
        _refuse_loop(directory)
        subdirectories.sort()
        relative = os.path.relpath(directory, folder)
        for name in sorted(names):
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if suffix in IMAGE_EXTENSIONS:
                found.append(os.fsencode(os.path.join(relative, name)))
            else:
                others[suffix] += 1
    if not found:
        raise UserError(
            f"the class folder {folder / class_name} has no images ({', '.join(IMAGE_EXTENSIONS)}); "
            "add some or remove the folder from every split"
        )
    return found
