"""Damaged, foreign and malicious checkpoints are refused by name without running code, and the previous one is used."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from support.checkpoints import FILES, rewrite_manifest, save
from support.run_content import content, differences
from support.tiny_run import RICH
from vitfast.errors import UserError
from vitfast.weights import checkpoint as checkpoints
from vitfast.weights.checkpoint import (
    CheckpointError,
    latest_checkpoint,
    load_state,
    load_weights_file,
    resolve_checkpoint,
    verify_checkpoint,
)
from vitfast.weights.manifest import manifest_text


@pytest.fixture(scope="module")
def real_run(tmp_path_factory, train_tiny) -> Path:
    """A run that was stopped: two checkpoints of a model, its average, its optimizer."""
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    assert train_tiny(run_dir, *RICH, stop_step=8) == 143
    return run_dir


@pytest.fixture
def pair(tmp_path, real_run) -> tuple[Path, Path]:
    """The previous and the newest checkpoint of a copy of that run."""
    run_dir = tmp_path / "run"
    shutil.copytree(real_run, run_dir)
    previous, newest = run_dir / "checkpoint_000006", run_dir / "checkpoint_000008"
    verify_checkpoint(previous)
    verify_checkpoint(newest)
    return previous, newest


def assert_falls_back(pair: tuple[Path, Path], message: str) -> None:
    """The newest checkpoint is refused by name; the run resumes from the previous one with a warning."""
    previous, newest = pair
    with pytest.raises(CheckpointError, match=message):
        resolve_checkpoint(newest)
    with pytest.warns(RuntimeWarning, match=f"{message}.*is skipped"):
        assert resolve_checkpoint(newest.parent) == previous


@pytest.mark.parametrize("name", FILES)
def test_every_truncation(pair, name):
    _, newest = pair
    whole = (newest / name).read_bytes()
    for length in [round(len(whole) * part / 20) for part in range(20)]:
        (newest / name).write_bytes(whole[:length])
        assert_falls_back(pair, f"{name} is damaged")


def refusal_of(load: Callable[[Path], object], checkpoint: Path) -> str | None:
    """The text of the CheckpointError, or None if it was accepted; any other error fails the test."""
    try:
        load(checkpoint)
    except CheckpointError as error:
        return str(error)
    return None


def flips(whole: bytes, seed: str) -> Iterator[bytes]:
    """The same bytes with one of their bits changed, 64 times."""
    chance = random.Random(seed)
    for _ in range(64):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        yield bytes(damaged)


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit(pair, name):
    previous, newest = pair
    file = newest / name
    whole = file.read_bytes()
    for damaged in flips(whole, name):
        file.write_bytes(damaged)
        refusal = refusal_of(verify_checkpoint, newest)
        if refusal is not None:
            assert str(file) in refusal
            with pytest.warns(RuntimeWarning, match=f"{name}.*is skipped"):
                assert resolve_checkpoint(newest.parent) == previous
            continue
        # harmless: JSON's white space
        assert name == "manifest.json"
        assert json.loads(damaged) == json.loads(whole)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(pair, name):
    (pair[1] / name).unlink()
    assert_falls_back(pair, f"{name} is missing")


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_the_disk_cannot_read(pair, name):
    (pair[1] / name).unlink()
    (pair[1] / name).symlink_to("/proc/self/mem")  # its first byte is an input/output error
    reason = "is damaged .*Input/output error" if name == "manifest.json" else "cannot be read: Input/output error"
    assert_falls_back(pair, f"{name} {reason}")


@pytest.mark.parametrize("name", FILES[:3])
def test_a_wrong_hash(pair, name):
    file = pair[1] / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["files"][name] = hashlib.sha256(b"another").hexdigest()
    file.write_text(json.dumps(manifest))
    assert_falls_back(pair, "manifest.json is damaged: its content does not match its SHA-256")
    file.write_text(manifest_text(manifest))
    assert_falls_back(pair, f"{name} is damaged: its SHA-256 differs from the one in the manifest")


def test_a_manifest_without_its_hash(pair):
    """Who may leave the hashes out could exchange every file."""
    file = pair[1] / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["manifest_sha256"]
    file.write_text(json.dumps(manifest))
    assert_falls_back(pair, "manifest.json is damaged: its content does not match its SHA-256")


@pytest.mark.parametrize("name", FILES[1:3])
def test_a_file_that_the_manifest_does_not_list(pair, name):
    file = pair[1] / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["files"][name]
    file.write_text(manifest_text(manifest))
    assert_falls_back(pair, f"{name} is not in manifest.json, which lists all files")


def test_a_newer_format_says_what_to_do(pair):
    rewrite_manifest(pair[1], format_version=checkpoints.FORMAT_VERSION + 1)
    assert_falls_back(pair, r"has format version 2; .* reads up to 1; update vitfast")


@pytest.mark.parametrize("version", [None, "1", 1.5, [1], True, 0, -1])
def test_a_format_that_is_no_number(pair, version):
    rewrite_manifest(pair[1], format_version=version)
    assert_falls_back(pair, "has format version")


@pytest.mark.parametrize("text", ["", "[]", "null", "3", '"checkpoint"', "{}", '{"format_version": 1}', "[" * 9_999])
def test_a_manifest_of_another_kind(pair, text):
    (pair[1] / "manifest.json").write_text(text)
    assert_falls_back(pair, "manifest.json is damaged")


def test_a_manifest_cannot_point_outside(tmp_path):
    path = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["../../secret"] = "0" * 64
    (path / "manifest.json").write_text(manifest_text(manifest))
    with pytest.raises(CheckpointError, match=r'"files" must be the SHA-256 of model\.safetensors and of the other'):
        verify_checkpoint(path)


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_a_malicious_pickle_runs_nothing(tmp_path, pair, train_tiny):
    target, file = tmp_path / "executed", pair[1] / "state.pt"
    torch.save({**load_state(pair[1]), "optimizer": Payload(target)}, file)
    assert_falls_back(pair, r"state.pt is damaged")
    # Even if the hashes were updated.
    rewrite_manifest(pair[1])
    assert resolve_checkpoint(pair[1].parent) == pair[1]
    with pytest.raises(CheckpointError, match=r"state.pt .* was rejected and none of its code was run"):
        load_state(pair[1])
    with pytest.raises(CheckpointError, match=r"state.pt .* was rejected and none of its code was run"):
        train_tiny(pair[1].parent, f"train.resume={pair[1].parent}")
    assert not target.exists()
    torch.load(file, weights_only=False)  # the payload is a real one
    assert target.exists()


@pytest.mark.parametrize(("name", "load"), [("state.pt", load_state), ("model.safetensors", load_weights_file)])
def test_arbitrary_bytes_are_read_or_refused_by_name(pair, name, load):
    """Without the help of the hash: bytes are changed where it hurts, in the headers."""
    file, chance = pair[1] / name, random.Random(name)
    whole = file.read_bytes()
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(chance.choice([1, 4, 64])):
            damaged[chance.randrange(2500)] = chance.randrange(256)
        file.write_bytes(damaged)
        refusal = refusal_of(load, pair[1])
        if refusal is not None:
            assert name in refusal
            refused += 1
    assert refused > 200


def test_a_state_that_is_no_dictionary_is_refused(tmp_path):
    path = save(tmp_path, 1)
    torch.save([1, 2], path / "state.pt")
    with pytest.raises(CheckpointError, match="contains a list"):
        load_state(path)


def test_weights_that_are_no_safetensors_are_named(tmp_path):
    path = save(tmp_path, 1)
    (path / "model.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(CheckpointError, match=r"model.safetensors is not a readable safetensors file"):
        load_weights_file(path)


def test_without_a_valid_one_nothing_is_made_up(tmp_path):
    for step in (1, 2):
        (save(tmp_path, step) / "state.pt").write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="state.pt is damaged"):
        assert latest_checkpoint(tmp_path) is None
    with pytest.warns(RuntimeWarning), pytest.raises(UserError, match="none of its 2 checkpoints is valid"):
        resolve_checkpoint(tmp_path)


def newest_step(run_dir: Path) -> int:
    with pytest.warns(RuntimeWarning, match="is skipped"):
        newest = latest_checkpoint(run_dir)
    assert newest is not None
    return load_state(newest)["step"]


@pytest.mark.parametrize("keep", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_damaged_newest_one_does_not_push_out_the_valid_ones(tmp_path, train_tiny, keep):
    """The run goes back to step 6, and is stopped again before it reaches the damaged step 11."""
    options, run_dir = [*RICH, f"train.keep_checkpoints={keep}"], tmp_path / "run"
    assert train_tiny(tmp_path / "whole", *options) == 0
    assert train_tiny(run_dir, *options, stop_step=11) == 143
    (run_dir / "checkpoint_000011" / "state.pt").write_bytes(b"")
    for stop_step in (8, 9):
        with pytest.warns(RuntimeWarning, match=r"checkpoint_000011.*is skipped"):
            assert train_tiny(run_dir, f"train.resume={run_dir}", stop_step=stop_step) == 143
        assert newest_step(run_dir) == stop_step
    with pytest.warns(RuntimeWarning, match=r"checkpoint_000011.*is skipped"):
        assert train_tiny(run_dir, f"train.resume={run_dir}") == 0
    assert differences(content(tmp_path / "whole"), content(run_dir)) == []
