"""Checkpoints: whole or absent, and never trusted unread."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import signal
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from support.subprocesses import run_python
from vitfast.engine import checkpoint as checkpoints
from vitfast.engine.checkpoint import (
    CheckpointError,
    latest_checkpoint,
    list_checkpoints,
    load_state,
    load_weights_file,
    prune_checkpoints,
    read_manifest,
    resolve_checkpoint,
    save_checkpoint,
    verify_checkpoint,
)
from vitfast.errors import UserError

FILES = ("model.safetensors", "ema.safetensors", "state.pt", "manifest.json")


def weights(value: float) -> dict[str, Tensor]:
    return {"a.weight": torch.full((30, 20), value), "b": torch.arange(7).to(torch.float64), "c": torch.tensor(value)}


def save(run_dir: Path, step: int, **changes) -> Path:
    content = {
        "model": weights(step),
        "ema": weights(-step),
        "state": {"step": step, "random": torch.get_rng_state()},
        "manifest": {"model": {"name": "m", "fields": {}}, "class_names": ["a", "b"], "epoch": 1, "metrics": {}},
    }
    return save_checkpoint(run_dir, step=step, **{**content, **changes})


def value(checkpoint: Path) -> float:
    return float(load_weights_file(checkpoint)["c"])


# What is written and read


def test_a_round_trip_is_exact(tmp_path):
    path = save(tmp_path, 12)
    assert path == tmp_path / "checkpoint_000012"
    assert sorted(file.name for file in path.iterdir()) == sorted(FILES)
    for kind, sign in (("model", 1), ("ema", -1)):
        found = load_weights_file(path, kind)
        assert found.keys() == weights(0).keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in weights(sign * 12).items())
    state = load_state(path)
    assert state["step"] == 12
    assert torch.equal(state["random"], torch.get_rng_state())


def test_the_manifest_says_what_the_contract_says(tmp_path):
    manifest = read_manifest(save(tmp_path, 3))
    assert manifest["format_version"] == 1
    assert manifest["step"] == 3
    assert manifest["class_names"] == ["a", "b"]
    assert set(manifest["files"]) == {"model.safetensors", "ema.safetensors", "state.pt"}
    assert all(len(digest) == 64 for digest in manifest["files"].values())
    assert read_manifest(tmp_path) == manifest


def test_average_and_state_may_be_absent(tmp_path):
    path = save(tmp_path, 1, ema=None, state=None)
    assert sorted(file.name for file in path.iterdir()) == ["manifest.json", "model.safetensors"]
    verify_checkpoint(path)
    with pytest.raises(CheckpointError, match="weights=model"):
        load_weights_file(path, "ema")
    with pytest.raises(CheckpointError, match="training cannot go on"):
        load_state(path)


def test_a_transposed_weight_is_saved_by_value(tmp_path):
    tensor = torch.arange(6.0).view(2, 3)
    path = save(tmp_path, 1, model={"w": tensor.t()})
    assert torch.equal(load_weights_file(path)["w"], tensor.t())


def test_the_same_step_is_replaced(tmp_path):
    save(tmp_path, 5)
    save(tmp_path, 5, model=weights(77))
    assert value(tmp_path / "checkpoint_000005") == 77
    assert os.listdir(tmp_path) == ["checkpoint_000005"]


def test_newest_by_number_not_by_name_or_time(tmp_path):
    for step in (999_999, 1_000_000, 2):
        save(tmp_path, step)
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "checkpoint_1000000",
        "checkpoint_999999",
        "checkpoint_000002",
    ]
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint_1000000"


def test_the_last_ones_and_the_best_stay(tmp_path):
    for step in range(1, 8):
        save(tmp_path, step)
    gone = prune_checkpoints(tmp_path, keep=2, best_step=3)
    assert [path.name for path in list_checkpoints(tmp_path)] == [f"checkpoint_00000{step}" for step in (7, 6, 3)]
    assert len(gone) == 4
    assert len(os.listdir(tmp_path)) == 3


def test_paths_that_hold_no_checkpoint_are_named(tmp_path):
    with pytest.raises(UserError, match="gone does not exist"):
        resolve_checkpoint(tmp_path / "gone")
    with pytest.raises(UserError, match="holds no checkpoint_NNNNNN folder"):
        resolve_checkpoint(tmp_path)
    (tmp_path / "checkpoint_000001").mkdir()
    with pytest.raises(CheckpointError, match=r"manifest.json is missing"):
        resolve_checkpoint(tmp_path / "checkpoint_000001")
    with pytest.warns(RuntimeWarning, match="passed over"), pytest.raises(UserError, match="none of its 1 checkpoints"):
        resolve_checkpoint(tmp_path)


# Damage


@pytest.mark.parametrize("name", FILES)
def test_every_truncation_is_noticed_and_the_previous_one_used(tmp_path, name):
    previous, newest = save(tmp_path, 1), save(tmp_path, 2)
    whole = (newest / name).read_bytes()
    for length in [round(len(whole) * part / 20) for part in range(20)]:
        (newest / name).write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=f"{name} is damaged"):
            verify_checkpoint(newest)
    with pytest.warns(RuntimeWarning, match=f"{name} is damaged.*passed over"):
        assert latest_checkpoint(tmp_path) == previous


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_noticed(tmp_path, name):
    path = save(tmp_path, 1)
    whole = (path / name).read_bytes()
    chance = random.Random(name)
    for _ in range(64):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        (path / name).write_bytes(damaged)
        try:
            verify_checkpoint(path)
        except CheckpointError:
            continue
        # Harmless: JSON's white space, and the name of the seal itself, which other tools may leave out.
        assert name == "manifest.json"
        content, original = json.loads(damaged), json.loads(whole)
        seal = original.pop("manifest_sha256")
        assert {key: value for key, value in content.items() if value != seal} == original


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_noticed(tmp_path, name):
    previous, newest = save(tmp_path, 1), save(tmp_path, 2)
    (newest / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        resolve_checkpoint(newest)
    with pytest.warns(RuntimeWarning, match=f"{name} is missing"):
        assert latest_checkpoint(tmp_path) == previous


def test_a_newer_format_says_what_to_do(tmp_path):
    path = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format_version": 2}))
    with pytest.raises(CheckpointError, match=r"format version 2; .* reads up to 1; update vitfast"):
        verify_checkpoint(path)


def test_a_manifest_cannot_point_outside(tmp_path):
    path = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["manifest_sha256"]
    manifest["files"]["../../secret"] = "0" * 64
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="must list"):
        verify_checkpoint(path)


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_a_foreign_pickle_runs_nothing(tmp_path):
    target = tmp_path / "executed"
    path = save(tmp_path, 1)
    torch.save({"optimizer": Payload(target)}, path / "state.pt")
    with pytest.raises(CheckpointError, match=r"state.pt is damaged"):
        verify_checkpoint(path)
    # Even where its author has mended the hashes.
    with pytest.raises(CheckpointError, match=r"state.pt .* was refused and nothing in it was run"):
        load_state(path)
    assert not target.exists()
    torch.load(path / "state.pt", weights_only=False)  # the payload is a real one
    assert target.exists()


def test_a_state_that_is_no_dictionary_is_refused(tmp_path):
    path = save(tmp_path, 1)
    torch.save([1, 2], path / "state.pt")
    with pytest.raises(CheckpointError, match="holds a list"):
        load_state(path)


def test_weights_that_are_no_safetensors_are_named(tmp_path):
    path = save(tmp_path, 1)
    (path / "model.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(CheckpointError, match=r"model.safetensors is no readable safetensors file"):
        load_weights_file(path)


# Faults while saving


def test_a_full_disk_leaves_the_earlier_one_intact_and_no_litter(tmp_path, monkeypatch):
    save(tmp_path, 1)
    for failing_call in range(1, 7):  # four files, the folder, the run's folder
        calls = 0

        def full(descriptor: int, failing_call: int = failing_call) -> None:
            nonlocal calls
            calls += 1
            if calls == failing_call:
                raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(checkpoints.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path, 2)
        monkeypatch.undo()
        assert not list(tmp_path.glob(".checkpoint*"))
        assert latest_checkpoint(tmp_path) in (tmp_path / "checkpoint_000001", tmp_path / "checkpoint_000002")
        shutil.rmtree(tmp_path / "checkpoint_000002", ignore_errors=True)
    assert value(save(tmp_path, 2)) == 2


@pytest.mark.parametrize("limit", [100, 1_000, 2_500])
def test_a_real_write_error_is_an_os_error(tmp_path, limit):
    # The kernel refuses to let a file grow beyond the limit: EFBIG, at different files of the checkpoint.
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    save(tmp_path, 1)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        with pytest.raises(OSError, match=r"(?i)file too large|checkpoint_000002"):
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == ["checkpoint_000001"]
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint_000001"


def test_a_folder_that_cannot_be_written_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="gone"):
        save(tmp_path / "gone", 1)


def test_between_the_two_renames_of_a_replacement_the_old_one_counts(tmp_path, monkeypatch):
    save(tmp_path, 5)
    rename, renames = os.rename, []

    def fail_second(source, target):
        renames.append(source)
        if len(renames) == 2:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(checkpoints.os, "rename", fail_second)
    with pytest.raises(OSError, match="Input/output"):
        save(tmp_path, 5, model=weights(77))
    monkeypatch.undo()
    survivor = latest_checkpoint(tmp_path)
    assert survivor is not None
    assert value(survivor) == 5
    save(tmp_path, 6)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint_000005", "checkpoint_000006"]


# Imports torch once; then each trial is a fork that saves for ever and is killed.
KILLER = """
    import itertools, os, random, signal, sys, time
    from pathlib import Path
    import torch
    from vitfast.engine.checkpoint import prune_checkpoints, save_checkpoint

    torch.set_num_threads(1)
    chance = random.Random(0)
    for trial in range(int(sys.argv[2])):
        run_dir = Path(sys.argv[1]) / str(trial)
        run_dir.mkdir()
        child = os.fork()
        if child == 0:
            for step in itertools.count(1):
                tensors = {f"w{i}": torch.full((64, 64), float(step)) for i in range(8)}
                content = {"model": tensors, "ema": tensors, "state": {"step": step}, "manifest": {"epoch": 0}}
                save_checkpoint(run_dir, step=step, **content)
                prune_checkpoints(run_dir, keep=2, best_step=1)
                (run_dir / "saved").write_text(str(step))
        while not (run_dir / "saved").exists():
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
"""
TRIALS = 25


def test_kill_9_at_any_instant_leaves_a_valid_checkpoint(tmp_path):
    finished = run_python("-c", textwrap.dedent(KILLER), str(tmp_path), str(TRIALS))
    assert finished.returncode == 0, finished.stderr
    for trial in range(TRIALS):
        run_dir = tmp_path / str(trial)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing under a public name is damaged
            newest = latest_checkpoint(run_dir)
        assert newest is not None
        step = load_state(newest)["step"]
        reported = int((run_dir / "saved").read_text() or step)  # the kill may come within this line, too
        assert reported <= step <= reported + 1
        assert float(load_weights_file(newest)["w0"][0, 0]) == step
        assert len([path for path in run_dir.iterdir() if path.name.startswith(".")]) <= 1
        save(run_dir, step + 1)
        assert not list(run_dir.glob(".*"))


def test_the_module_needs_neither_torchvision_nor_matplotlib():
    heavy = "{'torchvision', 'matplotlib', 'torchmetrics'}"
    code = f"import sys, vitfast.engine.checkpoint; print({{*sys.modules}} & {heavy})"
    assert run_python("-c", code).stdout.strip() == "set()"
