"""Checkpoints: directories that are written atomically.

``RUN/checkpoint_NNNNNN`` (NNNNNN is the step) contains ``model.safetensors``, ``ema.safetensors`` if weights are
averaged, ``state.pt`` (the training state) and ``manifest.json`` with the SHA-256 of each file. The directory is
written under a hidden name, flushed to disk, and renamed, so that neither a kill nor a full disk leaves an incomplete
checkpoint under its final name.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from vitfast import __version__
from vitfast.errors import UserError
from vitfast.files import atomic_file, flush_to_disk, sha256_of_file

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MODEL_FILE, EMA_FILE, STATE_FILE = "model.safetensors", "ema.safetensors", "state.pt"
_NAME = re.compile(r"checkpoint_(\d{6,})")
_REPLACED = re.compile(r"\.(checkpoint_\d{6,})\.replaced")


class CheckpointError(UserError):
    """A checkpoint that is damaged, incomplete, not from vitfast, or from a newer version."""


def save_checkpoint(run_dir: str | os.PathLike[str], *, step: int, manifest: Mapping[str, Any], **content: Any) -> Path:
    """Writes ``run_dir/checkpoint_NNNNNN`` atomically; an older one of the same step is replaced.

    Args:
        run_dir: existing folder of the run.
        step: completed optimizer steps, which name the checkpoint.
        manifest: as in ``write_checkpoint``, besides the step.
        **content: ``model``, ``ema`` and ``state`` of ``write_checkpoint``.

    Returns:
        The folder of the checkpoint.

    Raises:
        OSError: if it cannot be written (disk full, no permission). Existing checkpoints are intact.
    """
    run_dir = Path(run_dir)
    _remove_leftovers(run_dir)
    final = run_dir / f"checkpoint_{step:06d}"
    write_checkpoint(final, manifest={**manifest, "step": step}, **content)
    _remove_leftovers(run_dir)
    return final


def write_checkpoint(
    folder: Path,
    *,
    model: Mapping[str, Tensor],
    ema: Mapping[str, Tensor] | None = None,
    state: Mapping[str, Any] | None = None,
    manifest: Mapping[str, Any],
) -> None:
    """Writes a checkpoint folder of any name atomically; an existing one is renamed to ``.NAME.replaced``.

    Args:
        folder: to write; the caller removes ``.NAME.replaced``.
        model: the model's state dict.
        ema: the averaged model's state dict, with the same keys.
        state: tensors and plain values only, so that it loads with ``weights_only=True``.
        manifest: content of ``manifest.json`` besides format version, file hashes and vitfast's version.

    Raises:
        OSError: if it cannot be written. An existing one is intact.
    """
    temporary = folder.with_name(f".{folder.name}.writing")
    try:
        temporary.mkdir()
        _save_tensors(model, temporary / MODEL_FILE)
        if ema is not None:
            _save_tensors(ema, temporary / EMA_FILE)
        if state is not None:
            _save_state(state, temporary / STATE_FILE)
        hashes = {path.name: sha256_of_file(path) for path in sorted(temporary.iterdir())}
        record: dict[str, Any] = {"format_version": FORMAT_VERSION, "files": hashes, **manifest}
        record["vitfast_version"] = __version__
        (temporary / MANIFEST).write_text(_manifest_text(record), encoding="utf-8")
        for path in temporary.iterdir():
            flush_to_disk(path)
        flush_to_disk(temporary)
        if folder.exists():
            # between the two renames the old checkpoint is valid under the hidden name, see list_checkpoints
            os.rename(folder, folder.with_name(f".{folder.name}.replaced"))
        os.rename(temporary, folder)
        flush_to_disk(folder.parent)
    except (safetensors.SafetensorError, RuntimeError) as error:
        # the libraries wrap the error of the system in their own exceptions
        raise OSError(f"{folder} could not be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # it has been renamed unless an error was raised


def update_manifest(checkpoint: Path, changes: Mapping[str, Any]) -> None:
    """Updates the manifest of a checkpoint atomically. No other file is changed.

    Raises:
        CheckpointError: if the manifest is missing, damaged or too new.
        OSError: if it cannot be written; the old one is intact.
    """
    record = {**read_manifest(checkpoint), **changes}
    with atomic_file(checkpoint / MANIFEST) as temporary:
        temporary.write_text(_manifest_text(record), encoding="utf-8")


def list_checkpoints(run_dir: str | os.PathLike[str]) -> list[Path]:
    """Returns the checkpoint folders of a run, valid or not, newest step first."""
    found: list[tuple[int, int, Path]] = []
    run_dir = Path(run_dir)
    for path in run_dir.iterdir() if run_dir.is_dir() else ():
        replaced = _REPLACED.fullmatch(path.name)
        match = _NAME.fullmatch(replaced[1] if replaced else path.name)
        if match and path.is_dir():
            found.append((int(match[1]), 0 if replaced else 1, path))
    return [path for _, _, path in sorted(found, reverse=True)]


def latest_checkpoint(run_dir: str | os.PathLike[str]) -> Path | None:
    """Returns the newest valid checkpoint of a run, or None; damaged ones are skipped with a warning."""
    for path in list_checkpoints(run_dir):
        try:
            verify_checkpoint(path)
        except CheckpointError as error:
            warnings.warn(f"{error}; the checkpoint is skipped", RuntimeWarning, stacklevel=2)
        else:
            return path
    return None


def resolve_checkpoint(path: str | os.PathLike[str]) -> Path:
    """Returns the verified checkpoint folder of a run folder (its newest valid one) or of a checkpoint folder.

    Raises:
        UserError: if there is no such folder or no valid checkpoint in it.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; give the folder of a run (runs/…) or one of its checkpoints")
    if path.is_dir() and ((path / MANIFEST).exists() or _NAME.fullmatch(path.name)):
        verify_checkpoint(path)
        return path
    found = list_checkpoints(path)
    checkpoint = latest_checkpoint(path)
    if checkpoint is None:
        none_valid = f"none of its {len(found)} checkpoints is valid"
        reason = none_valid if found else "it contains no checkpoint_NNNNNN folder"
        raise UserError(f"{path} cannot be loaded: {reason}; give the folder of a run or one of its checkpoints")
    return checkpoint


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """Verifies a checkpoint folder against its manifest, and returns the manifest.

    Raises:
        CheckpointError: if a file is missing, cannot be read or differs from its hash, or if the manifest is unreadable
            or too new.
    """
    manifest = read_manifest(path)
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing, but the manifest lists it")
        try:
            found = sha256_of_file(file)
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
        if found != expected:
            raise CheckpointError(f"{file} is damaged: its SHA-256 differs from the one in the manifest")
    return manifest


def load_weights_file(checkpoint: Path, weights: str = "model") -> dict[str, Tensor]:
    """Reads the state dict ``model`` or ``ema`` of a checkpoint.

    Raises:
        CheckpointError: if the file is missing or not a safetensors file.
    """
    file = checkpoint / {"model": MODEL_FILE, "ema": EMA_FILE}[weights]
    if not file.is_file():
        hint = "; the run has no averaged weights, use weights=model" if weights == "ema" else ""
        raise CheckpointError(f"{file} does not exist{hint}")
    try:
        return safetensors.torch.load_file(file)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file} is not a readable safetensors file: {error}") from error


def load_state(checkpoint: Path) -> dict[str, Any]:
    """Reads ``state.pt`` onto the CPU with torch's restricted unpickler, which executes no code.

    Raises:
        CheckpointError: if it is missing, damaged, or contains anything but tensors and plain values.
    """
    file = checkpoint / STATE_FILE
    if not file.is_file():
        raise CheckpointError(
            f"{file} does not exist: the checkpoint can be evaluated, but training cannot resume from it"
        )
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise any exception in the unpickler
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{file} is not a training state of vitfast; it was rejected and none of its code was run ({reason})"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{file} contains a {type(state).__name__} instead of a training state")
    return state


def prune_checkpoints(run_dir: str | os.PathLike[str], keep: int, best_step: int | None, step: int) -> list[Path]:
    """Deletes all but the ``keep`` newest checkpoints up to ``step`` and the one of ``best_step``.

    Checkpoints after ``step`` are from before a resume from an earlier step, perhaps because they are damaged: they are
    kept, but not counted. A folder is renamed before it is deleted, so that a kill leaves no incomplete checkpoint.

    Returns:
        The deleted folders.
    """
    deleted: list[Path] = []
    numbered = [(_NAME.fullmatch(path.name), path) for path in list_checkpoints(run_dir)]
    known = [(int(match[1]), path) for match, path in numbered if match and int(match[1]) <= step]
    for number, path in known[max(keep, 1) :]:
        if number != best_step:
            doomed = path.with_name(f".{path.name}.deleting")
            os.rename(path, doomed)
            shutil.rmtree(doomed, ignore_errors=True)
            deleted.append(path)
    return deleted


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    safetensors.torch.save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


class _Recorder(io.BufferedWriter):
    """A file that records the error of a failed write; torch reports only a wrong file position."""

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


def _save_state(state: Mapping[str, Any], path: Path) -> None:
    with _Recorder(io.FileIO(path, "wb")) as file:
        try:
            torch.save(dict(state), file)
        except RuntimeError as error:
            if file.error is None:
                raise
            raise file.error from error


def _manifest_text(record: Mapping[str, Any]) -> str:
    """Formats the manifest with its SHA-256 as the last entry."""
    content = {**record}
    content.pop("manifest_sha256", None)
    return json.dumps({**content, "manifest_sha256": _manifest_sha256(content)}, indent=2) + "\n"


def _manifest_sha256(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(path: Path) -> dict[str, Any]:
    """Returns the manifest of a checkpoint folder; the other files are not checked.

    Raises:
        CheckpointError: if it is missing, damaged or too new.
    """
    file = path / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        version = manifest["format_version"]
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing: {path} is not a vitfast checkpoint, or incomplete") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise CheckpointError(
            f"{file} has format version {version!r}; this vitfast {__version__} reads up to {FORMAT_VERSION}; "
            "update vitfast to load it"
        )
    # a manifest without a hash was edited by another tool; the hashes of the files are still checked
    if manifest.get("manifest_sha256", expected := _manifest_sha256(manifest)) != expected:
        raise CheckpointError(f"{file} is damaged: its content does not match its SHA-256")
    files = manifest.get("files")
    if not isinstance(files, dict) or MODEL_FILE not in files or any(Path(name).name != name for name in files):
        raise CheckpointError(f'{file} is damaged: "files" must list {MODEL_FILE} and the others with their SHA-256')
    return manifest


def _remove_leftovers(run_dir: Path) -> None:
    """Removes leftovers of a kill; a replaced checkpoint only if its successor exists, otherwise it is restored."""
    for path in run_dir.glob(".checkpoint_*"):
        replaced = _REPLACED.fullmatch(path.name)
        if replaced is not None and not (run_dir / replaced[1]).exists():
            os.rename(path, run_dir / replaced[1])
        else:
            shutil.rmtree(path, ignore_errors=True)
