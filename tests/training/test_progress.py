"""The progress bar."""

from __future__ import annotations

import os
import pty
import sys
import time

import pytest

from vitfast.training.progress import Progress


def test_silent_without_a_terminal(capsys):
    with Progress(100) as progress:
        progress.phase("epoch 1/2")
        progress.advance(50)
        progress.show(0.5, 0.25)
        progress.write("a line")
    assert capsys.readouterr().err == "a line\n"
    assert not progress.enabled


def test_progress_bar_shows_loss_accuracy_and_rate(capsys):
    with Progress(200, done_images=50, enabled=True) as progress:
        progress.phase("epoch 1/2")
        progress.show(0.512345, 0.25)
        progress.advance(50)
        progress.write("a line")
        progress._bar.refresh()
    shown = capsys.readouterr().err
    for part in ("epoch 1/2", " 50 %", "loss 0.512", "top-1 25.0%", "images/s", "left", "a line\n"):
        assert part in shown


def read_all(descriptor: int) -> str:
    """What a terminal was sent; it hands it out in pieces."""
    pieces = []
    while True:
        try:
            pieces.append(os.read(descriptor, 4096))
        except BlockingIOError:
            return b"".join(pieces).decode()


@pytest.mark.parametrize("size", [(0, 0), (24, 100)])
def test_a_real_terminal_shows_the_bar_also_if_it_does_not_know_its_size(size, monkeypatch):
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    if size != (0, 0):
        import fcntl
        import struct
        import termios

        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    with open(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with Progress(10) as progress:
            assert progress.enabled
            progress.phase("epoch 1/2")
            for _ in range(3):
                time.sleep(0.11)  # tqdm draws ten times a second
                progress.advance(1)
            progress._bar.refresh()
        shown = read_all(ours)
    os.close(ours)
    assert "epoch 1/2  30 %" in shown, shown
    assert " left" in shown
