"""Full, broken or read-only disks: the previous checkpoint stays, and the next one can be saved."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from support.checkpoints import FILES, newest_value, save
from support.failing_calls import CHANGES, CLOSES, GROWS, READS, build_failing_calls
from support.run_content import content, differences
from support.subprocesses import python_environment, run_python
from support.tiny_run import TINY_RUN
from vitfast.weights import checkpoint as checkpoints

# Replaces checkpoint 2 (value 2) by another (value 3), each time with another call that fails, and reports for each:
# which call it was, the error's text, the value of the newest valid checkpoint, that of the next attempt, what is left.
EVERY_CALL = """
    import json, os, shutil, sys
    from pathlib import Path
    from support.checkpoints import FILES, newest_value, save
    from support.failing_calls import FailingCalls

    folder, calls, trials = Path(sys.argv[1]), FailingCalls(), []
    before, run_dir = folder / "before", folder / "run"
    before.mkdir()
    save(before, 1)
    save(before, 2)
    (before / ".checkpoint_000009.writing").mkdir()
    (before / ".checkpoint_000009.writing" / "litter").touch()

    def attempt(kinds, number, error, for_ever):
        shutil.copytree(before, run_dir)
        with calls.fail(run_dir, kinds, number, error, for_ever=for_ever):
            try:
                save(run_dir, 2, content=3)
                text = None
            except OSError as raised:
                text = str(raised)
            failed = calls.failed()
        newest = newest_value(run_dir)
        save(run_dir, 2, content=4)
        trial = [failed, text, newest, newest_value(run_dir), sorted(os.listdir(run_dir))]
        shutil.rmtree(run_dir)
        return trial

    for scenario, (kinds, error, for_ever) in json.loads(sys.argv[2]).items():
        number = 1
        while not trials or trials[-1][1]:
            trials.append([scenario, *attempt(kinds, number, error, for_ever)])
            number += 1
        print(json.dumps(trials))
        trials = []
"""
# which calls fail, how, and whether all later ones do, too
SCENARIOS = {
    "full": (GROWS, errno.ENOSPC, True),
    "read-only": (CHANGES, errno.EROFS, True),
    "broken": (READS | CHANGES | CLOSES, errno.EIO, False),
}
CALLED = {
    "full": {"mkdir", "open64", "write", "fsync"},
    "read-only": {"mkdir", "open64", "write", "fsync", "rename", "unlinkat"},
    "broken": {"mkdir", "open64", "write", "fsync", "rename", "unlinkat", "read", "close"},
}


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    folder = tmp_path_factory.mktemp("failing_calls")
    library = build_failing_calls(folder)
    if library is None:
        pytest.skip("there is no C compiler")
    arguments = ("-c", textwrap.dedent(EVERY_CALL), str(folder), json.dumps(SCENARIOS))
    finished = run_python(*arguments, LD_PRELOAD=str(library), OMP_NUM_THREADS="1")
    assert finished.returncode == 0, finished.stderr
    return [trial for line in finished.stdout.splitlines() for trial in json.loads(line)]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_whichever_call_fails(trials, scenario):
    *mine, last = [trial for name, *trial in trials if name == scenario]
    assert last[:3] == ["", None, 3]  # nothing has failed any more: all calls have had their turn
    assert {failed for failed, *_ in mine} >= CALLED[scenario]
    for failed, text, newest, again, names in mine:
        if text is None:
            # What removes litter may fail unnoticed, and safetensors does not ask whether closing works.
            assert failed in ("open", "open64", "openat64", "unlinkat", "rmdir", "close")
            assert newest == 3
        else:
            assert os.strerror(SCENARIOS[scenario][1]) in text, failed
            assert newest in (2, 3), failed
        assert again == 4, failed
        assert names == ["checkpoint_000001", "checkpoint_000002"], failed


@pytest.mark.parametrize("limit", [100, 1_000, 4_000, 30_000, 60_000, 80_500])
def test_a_real_write_error_is_an_os_error(tmp_path, limit):
    # The kernel refuses to let a file grow beyond the limit: EFBIG, at different files of the checkpoint.
    save(tmp_path, 1)
    state = {"optimizer": torch.zeros(20_000)}
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        with pytest.raises(OSError, match=r"File too large"):
            save(tmp_path, 2, state=state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == ["checkpoint_000001"]
    assert newest_value(tmp_path) == 1
    assert newest_value(save(tmp_path, 2, state=state).parent) == 2


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
        save(tmp_path, 5, content=77)
    monkeypatch.undo()
    assert newest_value(tmp_path) == 5
    save(tmp_path, 6)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint_000005", "checkpoint_000006"]


def test_all_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    """A power failure is not a kill: what was renamed before it was flushed may be empty afterwards."""
    events: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.rename

    def recorded_fsync(descriptor):
        fsync(descriptor)
        events.append(("flushed", os.readlink(f"/proc/self/fd/{descriptor}")))

    def recorded_rename(source, target):
        rename(source, target)
        events.append(("renamed", str(source)))

    monkeypatch.setattr(checkpoints.os, "fsync", recorded_fsync)
    monkeypatch.setattr(checkpoints.os, "rename", recorded_rename)
    save(tmp_path, 5)
    temporary = str(tmp_path / ".checkpoint_000005.writing")
    flushed_before = {path for _, path in events[: events.index(("renamed", temporary))]}
    assert flushed_before == {temporary, *(f"{temporary}/{name}" for name in FILES)}
    assert events[-1] == ("flushed", str(tmp_path))


# A run on a private mount with space for one checkpoint, but not for two.
SMALL_DISK = """
    import shutil, subprocess, sys
    from pathlib import Path
    import vitfast.train
    from support.checkpoints import save

    disk, options = Path(sys.argv[1]), sys.argv[2:]
    run_dir = disk / "run"

    def mount(options):
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], check=True)

    def train(*arguments):
        print("exit code", vitfast.train.main(arguments), file=sys.stderr, flush=True)

    mount("size=200k")
    train(*options, f"run_dir={run_dir}")
    mount("remount,size=20m")
    train(f"train.resume={run_dir}")
    mount("remount,ro")
    train(f"train.resume={run_dir}")
    try:
        save(run_dir, 99)
    except OSError as error:
        print(error, file=sys.stderr, flush=True)
    shutil.copytree(run_dir, disk.with_name("copy"))
    train(*options, f"run_dir={disk.with_name('undisturbed')}")
"""


def _namespace() -> list[str]:
    """Command that runs a process in a private mount namespace, or [] if that is not permitted."""
    for command in (["unshare", "--mount"], ["unshare", "--mount", "--map-root-user"]):
        try:
            tried = subprocess.run(
                [*command, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False
            )
        except OSError:
            return []
        if tried.returncode == 0:
            return command
    return []


@pytest.mark.slow
def test_a_run_on_a_disk_that_is_really_full_and_then_read_only(tmp_path):
    namespace = _namespace()
    if not namespace:
        pytest.skip("no right to mount a small disk")
    (tmp_path / "disk").mkdir()
    options = (*TINY_RUN, "optim.ema_decay=0.9", "train.threads=1")
    finished = subprocess.run(
        [*namespace, sys.executable, "-c", textwrap.dedent(SMALL_DISK), tmp_path / "disk", *options],
        env=python_environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    output = finished.stderr
    assert finished.returncode == 0, output
    assert "step 12 could not be saved: [Errno 28] No space left on device; earlier checkpoints in" in output
    assert "run cannot be resumed: Read-only file system" in output.replace(str(tmp_path / "disk") + "/", "")
    assert "[Errno 30] Read-only file system" in output
    codes = [int(line.rpartition(" ")[2]) for line in output.splitlines() if line.startswith("exit code")]
    assert codes == [2, 0, 2, 0]
    assert differences(content(tmp_path / "undisturbed"), content(tmp_path / "copy")) == []
