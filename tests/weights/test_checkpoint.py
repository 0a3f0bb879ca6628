"""Checkpoints are complete or absent, and are verified when read."""

from __future__ import annotations

import json
import os

import pytest
import torch

from support.checkpoints import FILES, save, value, weights
from support.subprocesses import run_python
from vitfast.errors import UserError
from vitfast.weights.checkpoint import (
    CheckpointError,
    latest_checkpoint,
    link_best,
    list_checkpoints,
    load_state,
    load_weights_file,
    prune_checkpoints,
    read_manifest,
    resolve_checkpoint,
    update_manifest,
    verify_checkpoint,
)


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


def test_manifest_has_the_documented_fields(tmp_path):
    manifest = read_manifest(save(tmp_path, 3))
    assert manifest["format_version"] == 1
    assert manifest["step"] == 3
    assert manifest["class_names"] == ["a", "b"]
    assert set(manifest["files"]) == {"model.safetensors", "ema.safetensors", "state.pt"}
    assert all(len(digest) == 64 for digest in manifest["files"].values())
    assert read_manifest(latest_checkpoint(tmp_path)) == manifest


def test_average_and_state_may_be_absent(tmp_path):
    path = save(tmp_path, 1, ema=None, state=None)
    assert sorted(file.name for file in path.iterdir()) == ["manifest.json", "model.safetensors"]
    verify_checkpoint(path)
    with pytest.raises(CheckpointError, match="weights=model"):
        load_weights_file(path, "ema")
    with pytest.raises(CheckpointError, match="training cannot resume"):
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
    gone = prune_checkpoints(tmp_path, keep=2, best_step=3, step=7)
    assert [path.name for path in list_checkpoints(tmp_path)] == [f"checkpoint_00000{step}" for step in (7, 6, 3)]
    assert len(gone) == 4
    assert len(os.listdir(tmp_path)) == 3


def test_later_ones_than_the_last_saved_do_not_count(tmp_path):
    """The run has gone back from step 9 to step 3, and saved step 5."""
    for step in (2, 3, 9, 5):
        save(tmp_path, step)
    prune_checkpoints(tmp_path, keep=1, best_step=None, step=5)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint_000005", "checkpoint_000009"]


def test_paths_that_hold_no_checkpoint_are_named(tmp_path):
    with pytest.raises(UserError, match="gone does not exist"):
        resolve_checkpoint(tmp_path / "gone")
    with pytest.raises(UserError, match="contains no checkpoint_NNNNNN folder"):
        resolve_checkpoint(tmp_path)
    (tmp_path / "checkpoint_000001").mkdir()
    with pytest.raises(CheckpointError, match=r"manifest.json is missing"):
        resolve_checkpoint(tmp_path / "checkpoint_000001")
    with pytest.warns(RuntimeWarning, match="is skipped"), pytest.raises(UserError, match="none of its 1 checkpoints"):
        resolve_checkpoint(tmp_path)


def test_a_manifest_is_updated_and_nothing_else(tmp_path):
    path = save(tmp_path, 3)
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.iterdir()}
    update_manifest(path, {"exit_thresholds": [0.5, 0.0]})
    manifest = verify_checkpoint(path)
    assert manifest["exit_thresholds"] == [0.5, 0.0]
    assert {**json.loads(before["manifest.json"][0]), "exit_thresholds": [0.5, 0.0]} == {
        **manifest,
        "manifest_sha256": json.loads(before["manifest.json"][0])["manifest_sha256"],
    }
    assert sorted(file.name for file in path.iterdir()) == sorted(FILES)
    for name in set(FILES) - {"manifest.json"}:
        assert ((path / name).read_bytes(), (path / name).stat().st_mtime_ns) == before[name]
    update_manifest(path, {"exit_thresholds": None})
    assert verify_checkpoint(path)["exit_thresholds"] is None


def test_a_manifest_that_cannot_be_written_stays_as_it_was(tmp_path, monkeypatch):
    path = save(tmp_path, 3)
    before = (path / "manifest.json").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            with pytest.raises(OSError, match="No space left"):
                update_manifest(path, {"exit_thresholds": [0.5, 0.0]})
        assert (path / "manifest.json").read_bytes() == before
        assert sorted(file.name for file in path.iterdir()) == sorted(FILES)


def test_a_damaged_manifest_is_not_updated(tmp_path):
    path = save(tmp_path, 3)
    text = (path / "manifest.json").read_text().replace('"epoch": 1', '"epoch": 2')
    (path / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match="SHA-256"):
        update_manifest(path, {"exit_thresholds": [0.5, 0.0]})
    assert (path / "manifest.json").read_text() == text


def test_a_renamed_checkpoint_is_not_the_newest(tmp_path):
    """Under the name of a later step it would stay the newest for ever."""
    for step in (3, 7):
        save(tmp_path, step)
    (tmp_path / "checkpoint_000003").rename(tmp_path / "checkpoint_000100")
    with pytest.raises(CheckpointError, match="was renamed: its manifest has step 3; rename it to checkpoint_000003"):
        resolve_checkpoint(tmp_path / "checkpoint_000100")
    with pytest.warns(RuntimeWarning, match="checkpoint_000100 was renamed"):
        assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint_000007"
    (tmp_path / "checkpoint_000100").rename(tmp_path / "best")
    assert resolve_checkpoint(tmp_path / "best") == tmp_path / "best"


def test_the_best_checkpoint_of_a_run(tmp_path):
    save(tmp_path, 3)
    newest = save(tmp_path, 7, manifest={"metrics": {"best_step": 3}})
    assert resolve_checkpoint(tmp_path) == newest
    best = resolve_checkpoint(tmp_path, best=True)
    assert best == tmp_path / "checkpoint_000003"
    assert resolve_checkpoint(newest, best=True) == newest  # it was given itself
    for step in (None, 7, 3, 3):
        link_best(tmp_path, step)
    assert os.readlink(tmp_path / "best") == "checkpoint_000003"
    assert value(resolve_checkpoint(tmp_path / "best")) == 3
    assert list_checkpoints(tmp_path) == [newest, best]
    (best / "state.pt").write_bytes(b"")
    with pytest.warns(RuntimeWarning, match=r"state.pt is damaged.*instead of this best checkpoint the newest is used"):
        assert resolve_checkpoint(tmp_path, best=True) == newest


def test_the_link_to_the_best_checkpoint_replaces_nothing_of_the_user(tmp_path):
    (tmp_path / "best").mkdir()
    link_best(tmp_path, 3)
    assert not (tmp_path / "best").is_symlink()


@pytest.mark.parametrize(
    "name",
    [
        "checkpoint_0000003",
        "checkpoint_00003",
        "checkpoint_\u0660\u0660\u0660\u0660\u0660\u0663",
        "checkpoint_000003\n",
    ],
)
def test_names_that_no_checkpoint_has(tmp_path, name):
    save(tmp_path, 3).rename(tmp_path / name)
    assert list_checkpoints(tmp_path) == []


def test_a_linked_checkpoint_is_removed_without_its_target(tmp_path):
    run_dir, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run_dir.mkdir()
    elsewhere.mkdir()
    (run_dir / "checkpoint_000001").symlink_to(save(elsewhere, 1))
    (run_dir / ".checkpoint_000009.writing").symlink_to(elsewhere)
    save(run_dir, 2)
    prune_checkpoints(run_dir, keep=1, best_step=None, step=2)
    assert os.listdir(run_dir) == ["checkpoint_000002"]
    assert value(elsewhere / "checkpoint_000001") == 1


def test_a_name_that_is_too_long(tmp_path):
    for load in (resolve_checkpoint, list_checkpoints):
        with pytest.raises(UserError, match="cannot be read: File name too long"):
            load(tmp_path / ("a" * 300))


def test_the_module_needs_neither_torchvision_nor_matplotlib():
    heavy = "{'torchvision', 'matplotlib', 'torchmetrics'}"
    code = f"import sys, vitfast.weights.checkpoint; print({{*sys.modules}} & {heavy})"
    assert run_python("-c", code).stdout.strip() == "set()"
