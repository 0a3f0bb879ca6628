"""The progress bar."""

from __future__ import annotations

from vitfast.engine.progress import Progress


def test_silent_without_a_terminal(capsys):
    with Progress(100) as progress:
        progress.phase("epoch 1/2")
        progress.advance(50)
        progress.show(0.5, 0.25)
        progress.write("a line")
    assert capsys.readouterr().err == "a line\n"
    assert not progress.enabled


def test_a_bar_shows_what_matters(capsys):
    with Progress(200, done_images=50, enabled=True) as progress:
        progress.phase("epoch 1/2")
        progress.show(0.512345, 0.25)
        progress.advance(50)
        progress.write("a line")
        progress._bar.refresh()
    shown = capsys.readouterr().err
    for part in ("epoch 1/2", " 50 %", "loss 0.512", "top-1 25.0%", "images/s", "left", "a line\n"):
        assert part in shown
