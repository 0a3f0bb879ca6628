"""``manifest.json`` of a checkpoint folder: the only place where it is read and checked.

The manifest records the model, its preprocessing, and the SHA-256 of every other file and of itself. The hashes detect
damage, not intent: who crafts a checkpoint can compute them. Therefore types and ranges of all entries are checked too.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vitfast import __version__
from vitfast.errors import UserError
from vitfast.files import open_regular, sha256_of_file

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MODEL_FILE, EMA_FILE, STATE_FILE = "model.safetensors", "ema.safetensors", "state.pt"

_HASH = "manifest_sha256"
_MAX_BYTES = 64 << 20
_MAX_COUNT = 1 << 53


class CheckpointError(UserError):
    """A checkpoint that is damaged, incomplete, not from vitfast, or from a newer version."""


def manifest_text(record: Mapping[str, Any]) -> str:
    """Formats a manifest, with its SHA-256 as the last entry."""
    content = {key: value for key, value in record.items() if key != _HASH}
    return json.dumps({**content, _HASH: _sha256(content)}, indent=2) + "\n"


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns the manifest of a checkpoint folder; the other files are not read.

    Raises:
        CheckpointError: if it is missing, damaged or too new, or an entry has a wrong type or value.
    """
    file = folder / MANIFEST
    try:
        with open_regular(file) as stream:
            text = stream.read(_MAX_BYTES + 1)
        if len(text) > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES >> 20} MiB")
        manifest: dict[str, Any] = json.loads(text)
        version, stored = manifest["format_version"], manifest.get(_HASH)
        expected = _sha256({key: value for key, value in manifest.items() if key != _HASH})
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing: {folder} is not a vitfast checkpoint, or incomplete") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged or not a manifest of vitfast: {error}") from error
    if type(version) is not int or not 0 < version <= FORMAT_VERSION:
        raise CheckpointError(
            f"{file} has format version {version!r}; this vitfast {__version__} reads up to {FORMAT_VERSION}; "
            "update vitfast to load it"
        )
    if stored != expected:
        raise CheckpointError(
            f"{file} is damaged: its content does not match its SHA-256, the entry {_HASH}; use another checkpoint"
        )
    _check_entries(file, manifest, _ENTRIES)
    if "files" not in manifest:
        raise CheckpointError(f'{file} is damaged: it lacks "files", {_ENTRIES["files"][1]}; use another checkpoint')
    check_preprocessing(file, manifest.get("data", {}), "data.")
    return manifest


def check_preprocessing(file: Path, record: Mapping[str, Any], prefix: str) -> None:
    """Raises CheckpointError if a preprocessing of images has wrong types or values, or enlarges them too much."""
    _check_entries(file, record, _DATA, prefix)


def require_entries(folder: Path, manifest: Mapping[str, Any], *names: str) -> None:
    """Raises CheckpointError unless the manifest of ``folder`` has these entries."""
    if missing := [name for name in names if name not in manifest]:
        raise CheckpointError(
            f"{folder / MANIFEST} is damaged or not a manifest of vitfast: it lacks {', '.join(missing)}; use another "
            "checkpoint"
        )


def verify_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Compares all files of a checkpoint folder with the manifest.

    Raises:
        CheckpointError: if a file is missing, cannot be read, differs from its hash, or is not in the manifest.
    """
    for name in (MODEL_FILE, EMA_FILE, STATE_FILE):
        file, expected = folder / name, manifest["files"].get(name)
        if expected is None and file.exists():
            raise CheckpointError(f"{file} is not in {MANIFEST}, which lists all files with their SHA-256; remove it")
        if expected is None:
            continue
        if not file.is_file():
            raise CheckpointError(f"{file} is missing, but the manifest lists it; use another checkpoint")
        try:
            found = sha256_of_file(file)
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
        if found != expected:
            raise CheckpointError(
                f"{file} is damaged: its SHA-256 differs from the one in the manifest; use another checkpoint"
            )


def is_count(value: object) -> bool:
    """Whether a value is an int from 0 that a float64 represents exactly, and no bool."""
    return type(value) is int and 0 <= value < _MAX_COUNT


def is_number(value: object) -> bool:
    """Whether a value is a finite int or float, and no bool."""
    return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) < _MAX_COUNT)


def _sha256(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_entries(
    file: Path, record: Mapping[str, Any], rules: Mapping[str, tuple[Callable[[Any], bool], str]], prefix: str = ""
) -> None:
    for name, (holds, rule) in rules.items():
        if name in record and not holds(record[name]):
            raise CheckpointError(f'{file} is damaged: "{prefix}{name}" must be {rule}; use another checkpoint')


def _are_files(value: Any) -> bool:
    allowed = (MODEL_FILE, EMA_FILE, STATE_FILE)
    return (
        isinstance(value, dict)
        and MODEL_FILE in value
        and all(name in allowed and isinstance(digest, str) for name, digest in value.items())
    )


def _is_model(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("name"), str) and isinstance(value.get("fields"), dict)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(name, str) for name in value)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(is_number, value))


def _per_channel(value: Any) -> bool:
    return _are_numbers(value) and len(value) in (1, 3)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


# entry -> whether a value is allowed, and which are; a manifest may lack an entry
_ENTRIES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "files": (_are_files, f"the SHA-256 of {MODEL_FILE} and of the other files, by name"),
    "step": (is_count, "a whole number from 0"),
    "epoch": (is_count, "a whole number from 0"),
    "model": (_is_model, "the name and the fields of a model"),
    "class_names": (_are_names, "a list of names"),
    "data": (_is_mapping, "the preprocessing of images"),
    "metrics": (_is_mapping, "metrics by split"),
    "exit_thresholds": (lambda value: value is None or _are_numbers(value), "null or a list of numbers"),
    "quantization": (lambda value: value is None or isinstance(value, dict), "null or a quantization record"),
}
_DATA: dict[str, tuple[Callable[[Any], bool], str]] = {
    "dataset": (lambda value: isinstance(value, str), "a name"),
    "val_share": (lambda value: is_number(value) and 0 <= value < 1, "a share from 0 below 1"),
    "img_size": (lambda value: is_count(value) and value > 0, "a number of pixels"),
    "in_chans": (lambda value: is_count(value) and value in (1, 3), "1 or 3"),
    # with these limits, normalized pixels are finite in float32
    "mean": (lambda value: _per_channel(value) and max(map(abs, value)) <= 1e6, "1 or 3 numbers from -1e6 to 1e6"),
    "std": (
        lambda value: _per_channel(value) and 1e-6 <= min(value) <= max(value) <= 1e6,
        "1 or 3 numbers from 1e-6 to 1e6",
    ),
    "resize": (lambda value: value in ("short_side", "both_sides"), "short_side or both_sides"),
    "interpolation": (lambda value: value in ("nearest", "bilinear", "bicubic"), "nearest, bilinear or bicubic"),
    "crop_pct": (lambda value: is_number(value) and 0.1 <= value <= 1, "a share from 0.1 to 1"),  # images are enlarged
}
