"""Conversion of RESISC45 (Cheng et al., 2017: 45 classes of 700 aerial images, 256 x 256) to ``file_list``."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from vitfast.data.file_list import LABEL_MAP, LIST_FILES
from vitfast.errors import UserError
from vitfast.files import atomic_file, read_text

_IMAGES = "images"


def prepare_resisc45(source_folder: str, target_folder: str, split: str) -> dict[str, int]:
    """Creates ``target_folder/images/CLASS/*``, the three lists and ``label_map.json``.

    Images are hard-linked if the file system allows, otherwise copied. Running it again changes nothing.

    Args:
        source_folder: the unpacked archive, with a folder of images for each class.
        target_folder: folder to create; existing files are kept.
        split: ``myrtle`` (by position) or ``torchgeo`` (its published lists, in ``source_folder``).

    Returns:
        Number of images in each split.

    Raises:
        UserError: if the source has an unexpected layout, or the target cannot be written.
    """
    source, target = Path(source_folder).expanduser(), Path(target_folder).expanduser()
    if not source.is_dir():
        raise UserError(f"source={source_folder} is no folder; unpack NWPU-RESISC45 and give its folder")
    folder = source / _IMAGES if (source / _IMAGES).is_dir() else source
    images = {
        entry.name: sorted(name for name in os.listdir(entry) if name.lower().endswith(IMG_EXTENSIONS))
        for entry in sorted(folder.iterdir())
        if entry.is_dir() and not entry.name.startswith(".")
    }
    images = {name: files for name, files in images.items() if files}
    if len(images) < 2:
        raise UserError(f"source={source_folder} has {len(images)} folders with images; RESISC45 has 45, one per class")
    splits = _myrtle_split(images) if split == "myrtle" else _torchgeo_split(images, source)
    try:
        for name, files in images.items():
            (target / _IMAGES / name).mkdir(parents=True, exist_ok=True)
            for file in files:
                _place(folder / name / file, target / _IMAGES / name / file)
        for name_of_split, chosen in splits.items():
            lines = [f"{_IMAGES}/{name}/{file}\n" for name, file in chosen]
            with atomic_file(target / LIST_FILES[name_of_split]) as temporary:
                temporary.write_text("".join(lines), encoding="utf-8")
        with atomic_file(target / LABEL_MAP) as temporary:
            numbers = {name: number for number, name in enumerate(images)}
            temporary.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"target={target_folder} cannot be written: {error}") from error
    return {name: len(chosen) for name, chosen in splits.items()}


def _myrtle_split(images: dict[str, list[str]]) -> dict[str, list[tuple[str, str]]]:
    """By position in alphabetical order: 70, 10 and 20 %, rounded as in myrtle-vision."""
    splits: dict[str, list[tuple[str, str]]] = {split: [] for split in LIST_FILES}
    for name, files in images.items():
        train, test = int(0.7 * len(files)), int(0.2 * len(files))  # of 700: 489 (0.7 is below 7/10) and 140
        parts = {"train": files[:train], "val": files[train : len(files) - test], "test": files[len(files) - test :]}
        for split, chosen in parts.items():
            splits[split] += [(name, file) for file in chosen]
    return splits


def _torchgeo_split(images: dict[str, list[str]], source: Path) -> dict[str, list[tuple[str, str]]]:
    class_of = {file: name for name, files in images.items() for file in files}
    splits = {}
    for split in LIST_FILES:
        file = source / f"resisc45-{split}.txt"
        try:
            names = read_text(file).split()
        except OSError as error:
            raise UserError(
                f"split=torchgeo reads {file}: {error}; download it from https://huggingface.co/datasets/torchgeo/resisc45"
            ) from error
        missing = [name for name in names if name not in class_of]
        if missing:
            raise UserError(f"{file} names {missing[0]} and {len(missing) - 1} more that source={source} does not have")
        splits[split] = [(class_of[name], name) for name in names]
    return splits


def _place(source: Path, target: Path) -> None:
    """Links or copies a file atomically, unless it exists."""
    if target.exists() and target.stat().st_size == source.stat().st_size:
        return
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copy2(source, temporary)
    os.replace(temporary, target)
