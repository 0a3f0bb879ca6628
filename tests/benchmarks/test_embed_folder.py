"""``benchmarks/embed_folder.py``: all libraries embed the same images to the same vectors."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from support.scripts import load_script

pytest.importorskip("pyarrow")
pytest.importorskip("timm")
embed_folder = load_script("embed_folder")


def test_the_embeddings_agree_and_the_parts_are_listed(tmp_path):
    random = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(random.integers(0, 255, (200, 300, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    result = tmp_path / "result.json"
    arguments = [f"images={tmp_path}", "model=test_vit", "precision=fp32", "batch=2", "workers=0", "seconds=0.1"]
    assert embed_folder.main([*arguments, f"json={result}"]) == 0
    (table,) = json.loads(result.read_text())["outcomes"]
    assert table["images"] == 3
    names = [row["subject"] for row in table["standings"]]
    assert names[:2] == ["vitfast", "timm and DataLoader"]
    assert [name.strip("[]") for name in names[2:]] == ["read", "decode", "resize", "model", "write"]
    assert table["standings"][0]["error"] < 1e-3
