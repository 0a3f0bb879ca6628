"""Pretrained weights from the Hugging Face hub's cache, and the preprocessing of images."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import vitfast
from vitfast.weights.hub import DEFAULT_TAGS, hub_repository

NAME, TAG = "vit_tiny_patch16_224", "augreg_in21k_ft_in1k"
CFG = {
    **{"input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center"},
    **{"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7]},
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of the hub without a connection."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def fill(hub, name=f"{NAME}.{TAG}", revision="main"):
    """Puts a model into the cache as huggingface_hub does; returns its weights."""
    import timm

    model = timm.create_model(name.partition(".")[0], num_classes=7)
    folder = hub / f"models--timm--{name}"
    snapshot = folder / "snapshots" / ("0" * 40)
    for path in (folder / "blobs", folder / "refs", snapshot):
        path.mkdir(parents=True)
    (folder / "refs" / revision).write_text("0" * 40)
    save_file(model.state_dict(), snapshot / "new")
    blob = folder / "blobs" / hashlib.sha256((snapshot / "new").read_bytes()).hexdigest()
    shutil.move(snapshot / "new", blob)
    (snapshot / "model.safetensors").symlink_to(blob)
    (snapshot / "config.json").write_text(json.dumps({"architecture": NAME, "num_classes": 7, "pretrained_cfg": CFG}))
    return model.eval(), snapshot


def test_weights_and_preprocessing_come_from_the_cache(hub):
    source, _ = fill(hub)
    model = vitfast.create_model(NAME, pretrained=True).eval()
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model(images), source(images), rtol=1e-4, atol=1e-4)
    assert model.pretrained_cfg["mean"] == CFG["mean"]
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (250, 300, 3), dtype=np.uint8))
    for one in (model, vitfast.accelerate(model)):
        prepared = vitfast.preprocessing(one)(photo)
        assert prepared.shape == (3, 224, 224)
    import timm.data

    theirs = timm.data.create_transform(**{**CFG, "input_size": (3, 224, 224)})(photo)
    torch.testing.assert_close(prepared, theirs, rtol=0, atol=1e-5)


def test_other_tags_revisions_and_sizes(hub):
    fill(hub, f"{NAME}.mine", revision="v2")
    model = vitfast.create_model(f"{NAME}.mine", pretrained=True, revision="v2", img_size=64, num_classes=3)
    assert (model.num_classes, model.img_size) == (3, 64)
    photo = Image.new("RGB", (90, 80))
    assert vitfast.preprocessing(model)(photo).shape == (3, 64, 64)


def test_models_of_timm(hub):
    source, _ = fill(hub)
    model = vitfast.create_model(f"timm/{NAME}", pretrained=True).eval()
    images = torch.randn(1, 3, 224, 224)
    assert torch.equal(model(images), source(images))
    assert model.pretrained_cfg["mean"] == CFG["mean"]
    with pytest.raises(vitfast.UserError, match=r"timm/vit_tiny_patch16_224\.none: Invalid pretrained tag"):
        vitfast.create_model(f"timm/{NAME}.none", pretrained=True)
    with pytest.raises(vitfast.UserError, match=r"has no pretrained weights for 'timm/vit_base_patch16_gap_224'; use"):
        vitfast.create_model("timm/vit_base_patch16_gap_224", pretrained=True)


def test_what_is_missing_is_named(hub):
    with pytest.raises(
        vitfast.UserError, match=rf"timm/{NAME}.{TAG} is not in the cache, and the .* hub cannot be reached"
    ):
        vitfast.create_model(NAME, pretrained=True)
    with pytest.raises(vitfast.UserError, match="timm has no pretrained weights for 't2t_vit_7'; use checkpoint=FILE"):
        vitfast.create_model("t2t_vit_7", pretrained=True)
    with pytest.raises(vitfast.UserError, match="takes a name and no checkpoint"):
        vitfast.create_model(NAME, checkpoint="file", pretrained=True)


def test_a_damaged_file_is_refused(hub):
    _, snapshot = fill(hub)
    blob = (snapshot / "model.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    with pytest.raises(vitfast.UserError, match=f"{blob.name} is damaged"):
        vitfast.create_model(NAME, pretrained=True)
    _, snapshot = fill(hub, f"{NAME}.other")
    sizes = [3, '{"input_size": 3}', '{"input_size": [3, "8", 8], "mean": [0.5], "std": [0.5]}']
    for text in ("[]", "[" * 9_999, *(f'{{"pretrained_cfg": {settings}}}' for settings in sizes)):
        (snapshot / "config.json").write_text(text)
        with pytest.raises(vitfast.UserError, match=r"config.json is no configuration of timm"):
            vitfast.create_model(f"{NAME}.other", pretrained=True)


def test_the_default_tags_are_timms():
    import timm

    known = {name: timm.get_pretrained_cfg(name) for name in vitfast.list_models() if name in timm.list_models()}
    assert {name: cfg.tag for name, cfg in known.items() if cfg.hf_hub_id} == DEFAULT_TAGS


def test_the_repositories_are_timms():
    import timm

    names = [name for name in timm.list_pretrained() if name.partition(".")[0] in DEFAULT_TAGS]
    names += DEFAULT_TAGS
    assert {name: timm.get_pretrained_cfg(name).hf_hub_id for name in names} == {
        name: hub_repository(name) for name in names
    }


def test_preprocessing_of_other_libraries(tmp_path):
    import timm
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 60, 3), dtype=np.uint8))
    model = timm.create_model("vit_tiny_patch16_224", depth=0)
    theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(model))(photo)
    torch.testing.assert_close(vitfast.preprocessing(model)(photo), theirs, rtol=0, atol=1e-5)

    with pytest.raises(vitfast.UserError, match="this ViTModel does not know its preprocessing"):
        vitfast.preprocessing(ViTModel(ViTConfig(num_hidden_layers=0)))
    ViTModel(ViTConfig(num_hidden_layers=1, image_size=32)).save_pretrained(tmp_path / "vit")
    model = ViTModel.from_pretrained(tmp_path / "vit")
    with pytest.raises(vitfast.UserError, match="has no image processor"):
        vitfast.preprocessing(model)
    processor = ViTImageProcessor(size={"height": 32, "width": 32}, resample=3, image_mean=[0.4] * 3)
    processor.save_pretrained(tmp_path / "vit")
    theirs = processor(photo, return_tensors="pt")["pixel_values"][0]
    for one in (model, vitfast.accelerate(model)):
        # transformers resizes tensors, torchvision PIL images
        torch.testing.assert_close(vitfast.preprocessing(one)(photo), theirs, rtol=0, atol=0.03)
