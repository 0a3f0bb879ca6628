"""Stopping on a signal."""

from __future__ import annotations

import os
import signal
import threading

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
