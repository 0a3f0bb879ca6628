"""The learning curves."""

from __future__ import annotations

import sys

import pytest
from PIL import Image

from vitfast.training.curves import draw_curves


def lines(epochs: int, splits: tuple[str, ...]) -> list[dict]:
    return [
        {"split": split, "epoch": epoch, "loss": 2.0 / epoch, "top1": 1 - 0.9 / epoch}
        for epoch in range(1, epochs + 1)
        for split in splits
    ]


@pytest.mark.parametrize(
    "metrics",
    [
        [],
        lines(1, ("train",)),
        [*lines(40, ("train", "val")), {"split": "test", "epoch": 40, "loss": 0.1, "top1": 0.97}],
        [{"split": "val", "epoch": 1, "loss": None, "top1": 0.5}],
    ],
    ids=["nothing", "one point", "a whole run", "a loss that is null"],
)
def test_a_picture_is_drawn(tmp_path, metrics):
    draw_curves(metrics, tmp_path / "curves.png", "a model on data")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.format == "PNG"
        assert image.width > 800
        assert len(image.convert("RGB").getcolors(2**24)) > 10
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def test_pyplot_and_its_global_state_stay_out(tmp_path):
    sys.modules.pop("matplotlib.pyplot", None)
    draw_curves(lines(2, ("train", "val")), tmp_path / "curves.png", "title")
    assert "matplotlib.pyplot" not in sys.modules
