"""Image folders for the tests of the data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MakeFolder = Callable[..., Path]


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Makes a folder of random pictures: ``make_folder({"train": {"cat": 3}})``; every picture is another."""

    def make(splits: dict[str, dict[str, int]], size: tuple[int, int] = (32, 32)) -> Path:
        random = np.random.default_rng(0)
        for split, classes in splits.items():
            for name, count in classes.items():
                folder = tmp_path / "pictures" / split / name
                folder.mkdir(parents=True)
                for index in range(count):
                    pixels = random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{index:03d}.png")
        return tmp_path / "pictures"

    return make
