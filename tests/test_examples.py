"""The examples run, on small models and images."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.accelerable import accelerable

EXAMPLES = Path(__file__).parents[1] / "examples"
SIZES = {"size": {"height": 32, "width": 32}, "crop_size": {"height": 32, "width": 32}}


@pytest.fixture
def images(tmp_path):
    random = np.random.default_rng(0)
    paths = [tmp_path / f"{name}.png" for name in ("first", "second")]
    for path in paths:
        Image.fromarray(random.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(path)
    return [str(path) for path in paths]


def run(name: str, *arguments: str) -> None:
    runpy.run_path(str(EXAMPLES / name))["main"](*arguments)


def test_clip_embeddings(tmp_path, images, capsys):
    from transformers import CLIPImageProcessor

    accelerable("transformers: CLIPVisionModelWithProjection").save_pretrained(tmp_path / "clip")
    CLIPImageProcessor(**SIZES).save_pretrained(tmp_path / "clip")
    run("clip_embeddings.py", str(tmp_path / "clip"), *images)
    first, second = (line.split() for line in capsys.readouterr().out.splitlines())
    assert first[0] == second[1] == "1.000"
    assert first[1] == second[0] != "1.000"
    assert first[2] == images[0]


def test_dinov3_features(tmp_path, images):
    from transformers import ViTImageProcessor

    accelerable("transformers: DINOv3ViTModel").save_pretrained(tmp_path / "dino")
    ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "dino")
    run("dinov3_features.py", str(tmp_path / "dino"), images[0], str(tmp_path / "features.png"))
    picture = Image.open(tmp_path / "features.png")
    assert picture.size == (50, 40)
    assert np.asarray(picture).std() > 10


def test_folder_to_parquet(tmp_path, images, capsys):
    pytest.importorskip("pyarrow")
    from transformers import ViTImageProcessor

    accelerable("transformers: ViTModel").save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    Image.open(images[0]).save(tmp_path / "third.png")
    (tmp_path / "broken.png").write_text("no image")
    run("folder_to_parquet.py", str(tmp_path / "vit"), f"{tmp_path}/*.png", str(tmp_path / "out"))
    *_, counted, similar = capsys.readouterr().out.splitlines()
    assert counted == f"4 rows, 1 unreadable: ['{tmp_path}/broken.png']"
    assert {images[0], f"{tmp_path}/third.png"} <= set(similar.split())
