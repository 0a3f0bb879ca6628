"""Checkpoints: directories that are written atomically.

``RUN/checkpoint_NNNNNN`` (NNNNNN is the step) contains ``model.safetensors``, ``ema.safetensors`` if weights are
averaged, ``state.pt`` (the training state) and ``manifest.json`` with the SHA-256 of each file. The directory is
written under a hidden name, flushed to disk, and renamed, so that neither a kill nor a full disk leaves an incomplete
checkpoint under its final name.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from vitfast import __version__
from vitfast.errors import UserError, explain_os_error
from vitfast.files import atomic_file, flush_to_disk, sha256_of_file
from vitfast.weights.manifest import (
    EMA_FILE,
    FORMAT_VERSION,
    MANIFEST,
    MODEL_FILE,
    STATE_FILE,
    CheckpointError,
    is_count,
    manifest_text,
    read_manifest,
    verify_files,
)
from vitfast.weights.torch_file import read_torch_file

BEST = "best"  # in a run folder, a link to its best checkpoint
_NAME = re.compile(r"\.?checkpoint_(0[0-9]{5}|[1-9][0-9]{5,15})(\.replaced)?")


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
    final = run_dir / _name(step)
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
        (temporary / MANIFEST).write_text(manifest_text(record), encoding="utf-8")
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
        temporary.write_text(manifest_text(record), encoding="utf-8")


def list_checkpoints(run_dir: str | os.PathLike[str]) -> list[Path]:
    """Returns the checkpoint folders of a run, valid or not, newest step first."""
    run_dir = Path(run_dir)
    with explain_os_error(f"{run_dir} cannot be read"):
        entries = list(run_dir.iterdir()) if run_dir.is_dir() else []
        numbered = [(step, not _is_replaced(path), path) for path in entries if (step := _step_of(path)) is not None]
        return [path for _, _, path in sorted(numbered, reverse=True) if path.is_dir()]


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


def resolve_checkpoint(path: str | os.PathLike[str], *, best: bool = False) -> Path:
    """Returns the verified checkpoint folder of a run folder or of a checkpoint folder.

    Args:
        path: the folder.
        best: of a run, return the checkpoint with the highest validation top-1, if it has a valid one, instead of the
            newest valid one.

    Raises:
        UserError: if there is no such folder or no valid checkpoint in it.
    """
    path = Path(path)
    with explain_os_error(f"{str(path)[:255]} cannot be read"):
        if not path.exists():
            raise UserError(f"{path} does not exist; give the folder of a run (runs/…) or one of its checkpoints")
        is_checkpoint = path.is_dir() and ((path / MANIFEST).exists() or _step_of(path) is not None)
    if is_checkpoint:
        verify_checkpoint(path)
        return path
    found = list_checkpoints(path)
    checkpoint = latest_checkpoint(path)
    if checkpoint is None:
        none_valid = f"none of its {len(found)} checkpoints is valid"
        reason = none_valid if found else "it contains no checkpoint_NNNNNN folder"
        raise UserError(f"{path} cannot be loaded: {reason}; give the folder of a run or one of its checkpoints")
    return _best_checkpoint(checkpoint) if best else checkpoint


def _best_checkpoint(newest: Path) -> Path:
    """Returns the checkpoint that the newest one records as the best, or the newest one."""
    step = best_step(read_manifest(newest))
    if step is None or newest.name == _name(step):
        return newest
    found = newest.with_name(_name(step))
    try:
        verify_checkpoint(found)
    except CheckpointError as error:
        warnings.warn(f"{error}; instead of this best checkpoint the newest is used", RuntimeWarning, stacklevel=3)
        return newest
    return found


def best_step(manifest: Mapping[str, Any]) -> int | None:
    """Returns the step of the best checkpoint up to that of a manifest; None without a validation."""
    step = manifest.get("metrics", {}).get("best_step")
    return step if is_count(step) else None


def link_best(run_dir: str | os.PathLike[str], step: int | None) -> None:
    """Makes ``run_dir/best`` a link to the checkpoint of ``step``, where the system has links.

    Raises:
        OSError: if it cannot be written.
    """
    if step is None or not hasattr(os, "O_DIRECTORY"):  # Windows: links need a privilege
        return
    link, temporary = Path(run_dir) / BEST, Path(run_dir) / ".checkpoint_best"
    if not link.is_symlink() and link.exists():
        return  # something else of the user
    if not link.is_symlink() or os.readlink(link) != _name(step):
        _remove(temporary)
        os.symlink(_name(step), temporary)
        os.replace(temporary, link)


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """Verifies a checkpoint folder against its manifest, and returns the manifest.

    Raises:
        CheckpointError: if a file is missing, cannot be read, differs from its hash or is not in the manifest, if the
            manifest is unreadable or too new, or if the folder's name has another step than the manifest.
    """
    manifest = read_manifest(path)
    verify_files(path, manifest)
    step, recorded = _step_of(path), manifest.get("step")
    if None not in (step, recorded) and step != recorded:
        raise CheckpointError(
            f"{path} was renamed: its manifest has step {recorded}; rename it to {_name(cast(int, recorded))}"
        )
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
    """Reads ``state.pt`` onto the CPU without executing code; the content is not checked, see ``check_state``.

    Raises:
        CheckpointError: if it is missing, damaged, or contains anything but tensors and plain values.
    """
    file = checkpoint / STATE_FILE
    if not file.is_file():
        raise CheckpointError(
            f"{file} does not exist: the checkpoint can be evaluated, but training cannot resume from it"
        )
    try:
        state = read_torch_file(file)
    except UserError as error:
        reason = str(error.__cause__ or error)
        raise CheckpointError(
            f"{file} is not a training state of vitfast; it was rejected and none of its code was run ({reason}); "
            "resume from another checkpoint"
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
    numbered = [(_step_of(path), path) for path in list_checkpoints(run_dir) if not _is_replaced(path)]
    known = [(number, path) for number, path in numbered if number is not None and number <= step]
    for number, path in known[max(keep, 1) :]:
        if number != best_step:
            doomed = path.with_name(f".{path.name}.deleting")
            os.rename(path, doomed)
            _remove(doomed)
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


def _name(step: int) -> str:
    return f"checkpoint_{step:06d}"


def _step_of(path: Path) -> int | None:
    """Returns the step that the name of a checkpoint folder has, or None; ``.NAME.replaced`` has that of NAME."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match and path.name.startswith(".") == bool(match[2]) else None


def _is_replaced(path: Path) -> bool:
    return path.name.startswith(".")


def _remove(path: Path) -> None:
    """Removes a folder, or a link to one, as far as possible."""
    if path.is_symlink():
        with suppress(OSError):
            path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _remove_leftovers(run_dir: Path) -> None:
    """Removes leftovers of a kill; a replaced checkpoint only if its successor exists, otherwise it is restored."""
    for path in run_dir.glob(".checkpoint_*"):
        step = _step_of(path)
        if step is not None and not (run_dir / _name(step)).exists():
            os.rename(path, run_dir / _name(step))
        else:
            _remove(path)
