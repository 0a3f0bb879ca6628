"""The Python code of README and guides runs, on small models and images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitfast
from support.slow import slow

ROOT = Path(__file__).parent.parent
# docs/guides/large_collections.md needs a cluster, docs/internals/emulation.md is a part of a test
DOCUMENTS = [
    ROOT / name
    for name in (
        "README.md",
        "docs/index.md",
        "docs/get_started/first_model.md",
        *(
            f"docs/guides/{name}.md"
            for name in ("accelerate", "attention_maps", "early_exit", "gpu", "quantize", "weights")
        ),
    )
]
SLOW = [ROOT / "docs/guides/deploy.md"]  # ONNX export
SMALL = {"depth": 1, "embed_dim": 48, "num_heads": 3}


@pytest.mark.parametrize("document", [*DOCUMENTS, *slow(SLOW)], ids=lambda path: path.name)
def test_snippets_run(document, tmp_path, monkeypatch):
    markdown = pytest.importorskip("sybil.parsers.markdown", reason="sybil is not installed: pip install sybil")
    timm = pytest.importorskip("timm")
    from sybil import Sybil

    create, create_timm = vitfast.create_model, timm.create_model

    def create_small(name=None, *, pretrained=False, checkpoint=None, **fields):
        """What ``create_model`` does, without the hub, in small; a run is a DVT of two exits."""
        if str(checkpoint).startswith("runs/"):
            return create("dvt_nano_16", num_classes=4)
        return create(name, checkpoint=checkpoint, **SMALL, **fields)

    def create_small_timm(name, pretrained=False, **fields):
        return create_timm(name, **SMALL, **fields)

    monkeypatch.setattr(vitfast, "create_model", create_small)
    monkeypatch.setattr(timm, "create_model", create_small_timm)
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 255, (250, 300, 3), dtype=np.uint8)).save("photo.jpg")
    torch.manual_seed(0)
    vitfast.save_weights(create("deit_tiny_patch16_224", **SMALL), "deit_tiny.safetensors")

    size, channels = (16, 1) if document.stem == "early_exit" else (224, 3)
    images = torch.randn(2, channels, size, size)
    loader = [(images, torch.tensor([0, 1]))]
    namespace = {"vitfast": vitfast, "timm": timm, "torch": torch, "Image": Image, "images": images, "loader": loader}
    namespace["held_out_loader"] = loader
    namespace["model"] = create("deit_tiny_patch16_224", **SMALL).eval()
    namespace["original"] = create("deit_tiny_patch16_224", **SMALL).eval()
    parsed = Sybil(parsers=[markdown.PythonCodeBlockParser()]).parse(document)
    parsed.namespace.update(namespace)
    examples = list(parsed.examples())
    assert examples
    for example in examples:
        example.evaluate()
