"""Stopping on a signal."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from unittest.mock import Mock

import pytest

from vitfast.training.stop_signal import StopSignal


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_sets_the_flag_and_the_exit_code(number, code):
    with StopSignal() as stop:
        assert not stop
        assert stop.exit_code == 0
        os.kill(os.getpid(), number)
        assert stop
        assert stop.exit_code == code
        assert stop.name == number.name


def test_only_ctrl_c_interrupts():
    with StopSignal() as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.exit_code == 143


def test_the_first_signal_counts():
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.exit_code == 143


@pytest.mark.parametrize("earlier", [[], [signal.SIGTERM]])
def test_a_second_ctrl_c_interrupts_at_once(earlier):
    with StopSignal():
        for number in (*earlier, signal.SIGINT):
            os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_earlier_handlers_come_back():
    seen = []

    def mine(number, frame):
        seen.append(number)

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with pytest.raises(RuntimeError, match="inside"), StopSignal():
            raise RuntimeError("inside")
        os.kill(os.getpid(), signal.SIGTERM)
        assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_another_thread_can_ask_but_not_handle():
    stops = []

    def body() -> None:
        with StopSignal() as stop:
            stop.request()
            stops.append(stop.exit_code)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert stops == [143]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def exit_code(body: Callable[[StopSignal], object], tmp_path, monkeypatch) -> tuple[int, str]:
    """Runs ``body`` in a process of its own; returns its exit code, 7 at the end of ``body``, and what it printed."""
    monkeypatch.setattr(StopSignal, "patience_s", 0.4)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(tmp_path / "output", os.O_WRONLY | os.O_CREAT), 2)
        with StopSignal() as stop:
            body(stop)
        os._exit(7)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, (tmp_path / "output").read_text()


def _block_in_c(_: StopSignal) -> None:
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(2):
        libc.pthread_mutex_lock(mutex)


def _read_a_pipe(_: StopSignal) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    os.read(os.pipe()[0], 1)


@pytest.mark.parametrize("body", [_block_in_c, _read_a_pipe])
def test_a_signal_ends_a_process_that_waits_for_ever(body, tmp_path, monkeypatch):
    code, output = exit_code(body, tmp_path, monkeypatch)
    assert code == 143
    assert output.startswith("error: SIGTERM: ended without saving, because another process, a file or the device has")


def _wait_for_the_other_ranks(stop: StopSignal) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    stop.share(Mock(world=2))
    for _ in range(6):
        time.sleep(0.1)
        assert not stop
    stop.set_agreed(15)
    assert stop
    time.sleep(0.6)  # saves
    os.kill(os.getpid(), signal.SIGTERM)


def _slow_steps(stop: StopSignal) -> None:
    stop.share(Mock(world=2))
    time.sleep(0.6)
    assert not stop
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.6)
    assert not stop


def _save_slowly(stop: StopSignal) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    stop.share(Mock(world=2))
    with stop.saving():
        time.sleep(0.6)
    assert not stop


@pytest.mark.parametrize("body", [_wait_for_the_other_ranks, _slow_steps, _save_slowly])
def test_a_process_that_works_may_finish(body, tmp_path, monkeypatch):
    assert exit_code(body, tmp_path, monkeypatch) == (7, "")


def test_nothing_is_left_behind():
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    with StopSignal():
        assert signal.set_wakeup_fd(-1) >= 0
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before
    assert signal.set_wakeup_fd(-1) == -1
