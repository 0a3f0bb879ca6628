"""The folder of a run."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import Mock

import pytest

from vitfast.errors import UserError
from vitfast.runs.run_directory import RunDirectory


def read_rows(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_the_default_is_named_after_recipe_and_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = RunDirectory.create(None, "recipes/digits.yaml")
    second = RunDirectory.create(None, "digits")
    assert re.fullmatch(r"runs/digits-\d{8}-\d{6}(-\d+)?", str(first.path))
    assert first.path != second.path
    assert first.path.is_dir()


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"is not empty, and a run overwrites nothing; .*train.resume="):
        RunDirectory.create(tmp_path, "digits")
    with pytest.raises(UserError, match="is a file"):
        RunDirectory.create(tmp_path / "thesis.txt", "digits")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_empty_folder_is_taken_and_parents_are_made(tmp_path):
    RunDirectory.create(tmp_path, "digits").close()
    RunDirectory.create(tmp_path / "a" / "b", "digits").close()
    assert (tmp_path / "a" / "b").is_dir()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"run_dir=.*file/run cannot be created: Not a directory"):
        RunDirectory.create(tmp_path / "file" / "run", "digits")


def test_a_run_that_is_gone_cannot_go_on(tmp_path):
    with pytest.raises(UserError, match="cannot be resumed"):
        RunDirectory.reopen(tmp_path / "gone")


def test_log_lines_are_shown_and_kept_with_their_time(tmp_path, capsys):
    run = RunDirectory.create(tmp_path, "digits")
    run.log("shown")
    run.log("kept\nonly", show=False)
    run.close()
    assert capsys.readouterr().err == "shown\n"
    kept = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split("  ", 1)[1] for line in kept] == ["shown", "kept", "only"]
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", line) for line in kept)


def test_metrics_are_restored(tmp_path):
    run = RunDirectory.create(tmp_path, "digits")
    rows = [{"split": "train", "step": step, "loss": float("nan") if step == 3 else 0.5} for step in range(5)]
    for row in rows:
        run.append_metrics(row)
    file = tmp_path / "metrics.jsonl"
    whole = file.read_bytes()
    assert read_rows(tmp_path)[3]["loss"] is None
    run.restore_metrics(rows[:2])
    assert [row["step"] for row in read_rows(tmp_path)] == [0, 1]
    for damaged in (b"", whole[:-7], whole + whole, b"\xba\n" + whole, whole):
        file.write_bytes(damaged)
        run.restore_metrics(rows)
        assert file.read_bytes() == whole
    file.unlink()
    run.restore_metrics([])
    assert not file.exists()


def test_the_environment_lists_the_restarts(tmp_path):
    run = RunDirectory.create(tmp_path, "digits")
    for start in range(3):
        run.write_environment({"start": start})
    content = json.loads((tmp_path / "environment.json").read_text())
    assert content == {"start": 0, "resumed": [{"start": 1}, {"start": 2}]}
    (tmp_path / "environment.json").write_text('{"resumed": 3}')  # of another program
    run.write_environment({"start": 4})
    assert json.loads((tmp_path / "environment.json").read_text()) == {"start": 4}


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The kernel refuses to let a file grow beyond that: a write is cut short, the next one fails."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_line_for_which_there_is_no_room_leaves_nothing_behind(tmp_path):
    run = RunDirectory.create(tmp_path, "digits")
    run.append_metrics({"step": 1})
    with files_of_at_most(20), pytest.raises(OSError, match="File too large"):
        run.append_metrics({"step": 2})
    run.append_metrics({"step": 3})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 3}\n'


def test_metrics_that_cannot_be_restored_stay(tmp_path):
    run = RunDirectory.create(tmp_path, "digits")
    rows = [{"step": step} for step in range(5)]
    for row in rows:
        run.append_metrics(row)
    with files_of_at_most(20), pytest.raises(UserError, match=r"metrics.jsonl cannot be restored.*: File too large"):
        run.restore_metrics(rows[:2])
    assert read_rows(tmp_path) == rows
    with files_of_at_most(20):
        run.restore_metrics(rows)  # nothing to do


LOCK = """
import fcntl, sys
file = open(sys.argv[1], "ab")
fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("locked", flush=True)
"""


@pytest.fixture
def other_process(tmp_path):
    """A process that holds the lock of the run in ``tmp_path``."""
    command = [sys.executable, "-S", "-c", f"{LOCK}input()", str(tmp_path / "log.txt")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"locked\n"
        yield process
        process.kill()


def test_a_run_is_used_by_one_process_at_a_time(tmp_path, other_process):
    with pytest.raises(UserError, match=r"the run .* is in use: another process is training in it; wait"):
        RunDirectory.reopen(tmp_path)
    other_process.kill()
    other_process.wait()
    RunDirectory.reopen(tmp_path).close()  # the lock of a process that was killed is gone


@pytest.mark.usefixtures("other_process")
def test_without_locks_a_run_can_be_opened(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
    RunDirectory.reopen(tmp_path).close()
    monkeypatch.undo()
    monkeypatch.setattr("fcntl.lockf", Mock(side_effect=OSError(errno.ENOLCK, "No locks available")))
    RunDirectory.reopen(tmp_path).close()


def test_a_forked_process_does_not_keep_the_lock(tmp_path):
    run = RunDirectory.create(tmp_path, "digits")
    end, begin = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(begin)
        os.read(end, 1)
        os._exit(0)
    run.close()
    command = [
        sys.executable,
        "-S",
        "-c",
        LOCK.replace("LOCK_EX", "LOCK_EX | fcntl.LOCK_NB"),
        str(tmp_path / "log.txt"),
    ]
    try:
        assert subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0
    finally:
        os.close(begin)
        os.close(end)
        os.waitpid(child, 0)


def test_a_full_disk_stops_neither_the_log_on_the_screen_nor_the_run(tmp_path, capsys):
    (tmp_path / "log.txt").symlink_to("/dev/full")
    run = RunDirectory.reopen(tmp_path)
    run.log("shown")
    run.close()
    assert capsys.readouterr().err == "shown\n"


def test_a_fifo_that_nobody_reads_is_an_error(tmp_path):
    run = RunDirectory.create(tmp_path, "digits")
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(OSError, match="No such device"):
        run.append_metrics({"step": 1})
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be restored .*: it is a FIFO"):
        run.restore_metrics([])
    run.close()
    (tmp_path / "metrics.jsonl").rename(tmp_path / "log.txt")
    with pytest.raises(UserError, match="cannot be resumed: No such device"):
        RunDirectory.reopen(tmp_path)


def test_the_log_goes_on_where_there_is_room_again(tmp_path):
    run = RunDirectory.create(tmp_path, "digits")
    run.log("first", show=False)
    with files_of_at_most(20):
        run.log("lost", show=False)
    run.log("last", show=False)
    run.close()
    assert [line.split("  ", 1)[1] for line in (tmp_path / "log.txt").read_text().splitlines()] == ["first", "last"]


def test_a_failure_that_cannot_be_written_down_is_only_reported(tmp_path, capsys):
    run = RunDirectory.create(tmp_path, "digits")
    assert run.write_non_finite({"step": 3}) == tmp_path / "non_finite.json"
    with files_of_at_most(5):
        assert run.write_non_finite({"step": 4}) is None
    assert "non_finite.json could not be written: [Errno 27] File too large" in capsys.readouterr().err
    assert json.loads((tmp_path / "non_finite.json").read_text()) == {"step": 3}


def test_files_are_replaced_as_a_whole(tmp_path):
    run = RunDirectory.create(tmp_path, "digits")
    run.write_text("config.yaml", "old")
    with files_of_at_most(20), pytest.raises(OSError, match="File too large"):
        run.write_text("config.yaml", "new" * 20)
    assert (tmp_path / "config.yaml").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["config.yaml", "log.txt"]


def test_files_are_on_the_disk_before_they_replace_others(tmp_path, monkeypatch):
    run = RunDirectory.create(tmp_path, "digits")
    run.write_text("config.yaml", "old")

    def power_failure(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", power_failure)
    with pytest.raises(KeyboardInterrupt):
        run.write_text("config.yaml", "new")
    assert (tmp_path / "config.yaml").read_text() == "old"
