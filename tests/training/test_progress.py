"""The progress bar."""

from __future__ import annotations

import os
import pty
import sys

import pytest
from tqdm import tqdm

from vitfast.training.progress import progress_bar


def test_nothing_is_drawn_without_a_terminal(capsys):
    with progress_bar(100, enabled=True) as bar:
        bar.set_description_str("epoch 1/2", refresh=False)
        bar.update(50)
        bar.set_postfix_str("loss 0.500", refresh=False)
        tqdm.write("a line", file=sys.stderr)
    assert capsys.readouterr().err == "a line\n"
    assert bar.disable


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
        with progress_bar(20, 10, enabled=True) as bar:
            assert not bar.disable
            bar.mininterval = 0  # tqdm draws every update
            bar.set_description_str("epoch 1/2", refresh=False)
            bar.set_postfix_str("loss 0.512", refresh=False)
            for _ in range(3):
                bar.update(1)
            tqdm.write("a line", file=terminal)
            bar.refresh()
        shown = read_all(ours)
    os.close(ours)
    for part in ("epoch 1/2  65 %", "loss 0.512", "images/s", " left", "a line"):
        assert part in shown, shown
