"""Checkpoints: directories that are either whole or absent.

``RUN/checkpoint_NNNNNN`` (NNNNNN is the step) holds ``model.safetensors``, ``ema.safetensors`` if weights are averaged,
``state.pt`` (what training needs to go on) and ``manifest.json`` with the SHA-256 of each of them. The directory is
written under a hidden name beside its final one, flushed to the disk, and then renamed, so that neither a kill nor a
full disk leaves half a checkpoint under a name that anyone reads.
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
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from vitfast import __version__
from vitfast.errors import UserError
from vitfast.files import flush_to_disk, sha256_of_file

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MODEL_FILE, EMA_FILE, STATE_FILE = "model.safetensors", "ema.safetensors", "state.pt"
_NAME = re.compile(r"checkpoint_(\d{6,})")
_REPLACED = re.compile(r"\.(checkpoint_\d{6,})\.replaced")


class CheckpointError(UserError):
    """A checkpoint that is damaged, incomplete, foreign or newer than this vitfast."""


def save_checkpoint(
    run_dir: str | os.PathLike[str],
    *,
    step: int,
    model: Mapping[str, Tensor],
    ema: Mapping[str, Tensor] | None = None,
    state: Mapping[str, Any] | None = None,
    manifest: Mapping[str, Any],
) -> Path:
    """Writes ``run_dir/checkpoint_NNNNNN`` atomically; an older one of the same step is replaced.

    Args:
        run_dir: existing folder of the run.
        step: optimizer steps done, which names the checkpoint.
        model: the model's state dict.
        ema: the averaged model's state dict, with the same keys.
        state: tensors and plain values only, so that it loads with ``weights_only=True``.
        manifest: what ``manifest.json`` says besides format version, step, file hashes and vitfast's version.

    Returns:
        The folder of the checkpoint.

    Raises:
        OSError: if it cannot be written (disk full, no permission). What was there before is intact.
    """
    run_dir = Path(run_dir)
    _remove_litter(run_dir)
    final = run_dir / f"checkpoint_{step:06d}"
    write_checkpoint(final, model=model, ema=ema, state=state, manifest={**manifest, "step": step})
    _remove_litter(run_dir)
    return final


def write_checkpoint(
    folder: Path,
    *,
    model: Mapping[str, Tensor],
    ema: Mapping[str, Tensor] | None = None,
    state: Mapping[str, Any] | None = None,
    manifest: Mapping[str, Any],
) -> None:
    """Writes a checkpoint folder of any name atomically; the arguments are those of ``save_checkpoint``.

    One that is there already is renamed to ``.NAME.replaced``, for the caller to remove.

    Raises:
        OSError: if it cannot be written. What was there before is intact.
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
            # Two renames: between them the old one still counts, under the hidden name (see list_checkpoints).
            os.rename(folder, folder.with_name(f".{folder.name}.replaced"))
        os.rename(temporary, folder)
        flush_to_disk(folder.parent)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise
        if isinstance(error, (safetensors.SafetensorError, RuntimeError)):
            # The libraries hide the system's error in a text of their own.
            raise OSError(f"{folder} could not be written: {error}") from error
        raise


def update_manifest(checkpoint: Path, changes: Mapping[str, Any]) -> None:
    """Changes what a checkpoint's manifest says; a reader sees the old one or the new one. No other file is touched.

    Args:
        checkpoint: folder of the checkpoint.
        changes: new values, by name.

    Raises:
        CheckpointError: if the manifest is missing, damaged or too new.
        OSError: if it cannot be written; the old one is intact.
    """
    record = {**read_manifest_file(checkpoint), **changes}
    temporary = checkpoint / f".{MANIFEST}.writing"
    try:
        temporary.write_text(_manifest_text(record), encoding="utf-8")
        flush_to_disk(temporary)
        os.replace(temporary, checkpoint / MANIFEST)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
    flush_to_disk(checkpoint)


def list_checkpoints(run_dir: str | os.PathLike[str]) -> list[Path]:
    """Returns the checkpoint folders of a run, newest step first, whether they are valid or not."""
    found: list[tuple[int, int, Path]] = []
    run_dir = Path(run_dir)
    for path in run_dir.iterdir() if run_dir.is_dir() else ():
        replaced = _REPLACED.fullmatch(path.name)
        match = _NAME.fullmatch(replaced[1] if replaced else path.name)
        if match and path.is_dir():
            found.append((int(match[1]), 0 if replaced else 1, path))
    return [path for _, _, path in sorted(found, reverse=True)]


def latest_checkpoint(run_dir: str | os.PathLike[str]) -> Path | None:
    """Returns the newest valid checkpoint of a run, or None; damaged ones are passed over with a warning each."""
    for path in list_checkpoints(run_dir):
        try:
            verify_checkpoint(path)
        except CheckpointError as error:
            warnings.warn(f"{error}; the checkpoint is passed over", RuntimeWarning, stacklevel=2)
        else:
            return path
    return None


def resolve_checkpoint(path: str | os.PathLike[str]) -> Path:
    """Turns a run folder (its newest valid checkpoint) or a checkpoint folder into a verified checkpoint folder.

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
        reason = f"none of its {len(found)} checkpoints is valid" if found else "it holds no checkpoint_NNNNNN folder"
        raise UserError(f"{path} cannot be loaded: {reason}; give the folder of a run or one of its checkpoints")
    return checkpoint


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """Checks a checkpoint folder against its manifest, which it returns.

    Raises:
        CheckpointError: if a file is missing, cannot be read or differs from its hash, or if the manifest is unreadable
            or too new.
    """
    manifest = read_manifest_file(path)
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing, although the manifest lists it")
        try:
            found = sha256_of_file(file)
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
        if found != expected:
            raise CheckpointError(f"{file} is damaged: its SHA-256 is not the one in the manifest")
    return manifest


def read_manifest(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the manifest of a checkpoint folder, or of a run's newest valid checkpoint.

    Raises:
        UserError: if there is none, or it is damaged.
    """
    return read_manifest_file(resolve_checkpoint(path))


def load_weights_file(checkpoint: Path, weights: str = "model") -> dict[str, Tensor]:
    """Reads the state dict ``model`` or ``ema`` of a checkpoint.

    Raises:
        CheckpointError: if the file is missing or no safetensors file.
    """
    file = checkpoint / {"model": MODEL_FILE, "ema": EMA_FILE}[weights]
    if not file.is_file():
        hint = "; the run kept no averaged weights, use weights=model" if weights == "ema" else ""
        raise CheckpointError(f"{file} does not exist{hint}")
    try:
        return safetensors.torch.load_file(file)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file} is no readable safetensors file: {error}") from error


def load_state(checkpoint: Path) -> dict[str, Any]:
    """Reads ``state.pt`` onto the CPU with torch's restricted unpickler, which executes nothing.

    Raises:
        CheckpointError: if it is missing, damaged, or holds anything but tensors and plain values.
    """
    file = checkpoint / STATE_FILE
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist: the checkpoint can be used, but training cannot go on from it")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever an unpickler can stumble over
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{file} is no training state of vitfast; it was refused and nothing in it was run ({reason})"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{file} holds a {type(state).__name__} instead of a training state")
    return state


def prune_checkpoints(run_dir: str | os.PathLike[str], keep: int, best_step: int | None, step: int) -> list[Path]:
    """Deletes all but the ``keep`` newest checkpoints up to ``step`` and the one of ``best_step``.

    A folder is renamed before it is emptied, so that a kill in between leaves no half-empty checkpoint.

    Args:
        run_dir: folder of the run.
        keep: how many stay, at least 1.
        best_step: the step of another one that stays.
        step: of the checkpoint that was saved last. Later ones are from before the run went back to an older one,
            perhaps because they are damaged: they stay, but do not count.

    Returns:
        The folders that are gone.
    """
    gone: list[Path] = []
    numbered = [(_NAME.fullmatch(path.name), path) for path in list_checkpoints(run_dir)]
    known = [(int(match[1]), path) for match, path in numbered if match and int(match[1]) <= step]
    for number, path in known[max(keep, 1) :]:
        if number != best_step:
            doomed = path.with_name(f".{path.name}.deleting")
            os.rename(path, doomed)
            shutil.rmtree(doomed, ignore_errors=True)
            gone.append(path)
    return gone


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    safetensors.torch.save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


class _Recorder(io.BufferedWriter):
    """A file that remembers why it could not be written; torch would only report that its position is wrong."""

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
    """The manifest as it stands in its file, with its own SHA-256 last."""
    content = {key: value for key, value in record.items() if key != "manifest_sha256"}
    return json.dumps({**content, "manifest_sha256": _manifest_sha256(content)}, indent=2) + "\n"


def _manifest_sha256(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest_file(path: Path) -> dict[str, Any]:
    """Returns the manifest of a checkpoint folder; the other files are not looked at.

    Raises:
        CheckpointError: if it is missing, damaged or too new.
    """
    file = path / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        version = manifest["format_version"]
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing: {path} is no vitfast checkpoint, or not all of one") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise CheckpointError(
            f"{file} has format version {version!r}; this vitfast {__version__} reads up to {FORMAT_VERSION}; "
            "update vitfast to load it"
        )
    # A manifest without its own hash was written by another tool; the hashes of the files still hold.
    if manifest.get("manifest_sha256", expected := _manifest_sha256(manifest)) != expected:
        raise CheckpointError(f"{file} is damaged: its content does not have the SHA-256 that it states")
    files = manifest.get("files")
    if not isinstance(files, dict) or MODEL_FILE not in files or any(Path(name).name != name for name in files):
        raise CheckpointError(f'{file} is damaged: "files" must list {MODEL_FILE} and the others with their SHA-256')
    return manifest


def _remove_litter(run_dir: Path) -> None:
    """Removes what a kill left behind; a replaced checkpoint only once its successor has its name."""
    for path in run_dir.glob(".checkpoint_*"):
        replaced = _REPLACED.fullmatch(path.name)
        if replaced is None:
            shutil.rmtree(path, ignore_errors=True)
        elif (run_dir / replaced[1]).exists():
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.rename(path, run_dir / replaced[1])
