"""``benchmarks/embed_folder.py``: all libraries embed the same images to the same vectors."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from support.scripts import load_script
from vitfast.device import has_fast_bf16

pytest.importorskip("pyarrow")
pytest.importorskip("timm")
embed_folder = load_script("embed_folder")


def test_the_embeddings_agree_and_the_parts_are_listed(tmp_path):
    random = np.random.default_rng(0)
    for number in range(3):
        colours = Image.fromarray(random.integers(0, 255, (6, 6, 3), dtype=np.uint8))
        colours.resize((300, 200), Image.Resampling.BICUBIC).save(tmp_path / f"{number}.png")
    result = tmp_path / "result.json"
    arguments = [f"images={tmp_path}", "model=test_vit", "batch=2", "workers=0", "compile=false", "seconds=0.1"]
    arguments += ["long_side=270"]
    assert embed_folder.main([*arguments, f"json={result}"]) == 0
    (table,) = json.loads(result.read_text())["outcomes"]
    assert table["images"] == 3
    names = [row["subject"] for row in table["standings"]]
    timm = [f"timm eager {precision}, workers=0" for precision in ("fp32", "bf16")]
    expected = ["vitfast fp32", "vitfast int8", *timm[: 1 + has_fast_bf16(torch.device("cpu"))]]
    parts = ["read", "decode", "resize", "model", "write"]
    assert [name.partition(" (")[0] for name in names] == expected + parts
    assert names[0].endswith("(cosine 1.0000)")
    assert table["standings"][0]["error"] < 1e-3
