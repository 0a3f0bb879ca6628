"""Files of save_weights: timm reads them, create_model rebuilds the model, and they are complete or absent."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import vitfast
from vitfast.errors import UserError
from vitfast.models import ImageModel

NANO = "vit_nano_patch2_8"


def assert_same(model: ImageModel, other: ImageModel) -> None:
    assert (model.model_name, model.model_fields) == (other.model_name, other.model_fields)
    assert model.state_dict().keys() == other.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


@pytest.mark.parametrize(
    "fields",
    [
        {"num_classes": 7},
        {"num_classes": 0, "img_size": 12, "in_chans": 3},
        {"layer_norm_eps": 1e-5, "qkv_bias": False, "patch_order": "channels_last", "head_type": "norm_linear"},
        {"distillation_token": "last", "gelu": "tanh", "pooling": "mean", "drop_path": 0.1},
        {"head_hidden_dim": 9},
        {"head_hidden_dim": 9, "num_classes": 0},
        {"distillation_token": "after_class", "depth": 2, "mlp_ratio": 2.51},  # 160.64 channels are 160
    ],
)
@pytest.mark.filterwarnings("ignore:.*only vitfast reads")
def test_builds_the_model_again(tmp_path: Path, fields: dict[str, Any]) -> None:
    model = vitfast.create_model(NANO, **fields)
    vitfast.save_weights(model, tmp_path / "model.safetensors")
    again = vitfast.create_model(checkpoint=tmp_path / "model.safetensors")
    assert_same(again, model)
    assert (again.load_report.family, again.load_report.fields) == ("vitfast", {})
    assert vitfast.load_weights(again, tmp_path / "model.safetensors").missing == ()
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_the_files_fields_and_the_given_ones_together(tmp_path: Path) -> None:
    """15 pixels are whole patches of the file's size, 3, though not of the architecture's, 2."""
    path = tmp_path / "model.safetensors"
    vitfast.save_weights(vitfast.create_model(NANO, patch_size=3, img_size=12), path)
    assert vitfast.create_model(NANO, checkpoint=path, img_size=15).fields.grid_size == 5
    with pytest.raises(UserError, match=r"img_size=14 is not a multiple of patch_size=3; .* \(with the fields of .*"):
        vitfast.create_model(NANO, checkpoint=path, img_size=14)
    with pytest.raises(UserError, match="unknown model field 'depht'; the nearest: depth"):
        vitfast.create_model(NANO, checkpoint=path, depht=2)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("torchvision/squeezenet1_1", {}),
        ("convit_tiny", {"depth": 3, "local_up_to_layer": 2, "img_size": 32, "patch_order": "channels_last"}),
        ("t2t_vit_7", {"depth": 2, "img_size": 32}),
        ("dvt_deit_small", {"depth": 2, "embed_dim": 24, "num_heads": 3}),
        (
            "dvt_deit_small",
            {"depth": 1, "embed_dim": 24, "num_heads": 3, "feature_reuse": False, "relation_reuse": False},
        ),
        ("dvt_t2t_vit_12", {"depth": 1, "embed_dim": 24, "num_heads": 3, "img_size": 64, "backbone": "t2t_vit_t"}),
        ("dvt_mini_32", {"depth": 1, "backbone": "conv_vit", "in_chans": 1}),
        ("dvt_nano_16", {"num_classes": 0}),
        ("t2t_vit_t_14", {"depth": 1, "img_size": 32, "in_chans": 1}),
        ("convit_tiny", {"depth": 3, "local_up_to_layer": 0, "img_size": 32, "locality_dim": 10}),
    ],
)
def test_every_family_of_models(tmp_path: Path, name: str, fields: dict[str, Any]) -> None:
    model = vitfast.create_model(name, **{"num_classes": 3, **fields})
    vitfast.save_weights(model, tmp_path / "model.safetensors")
    assert_same(vitfast.create_model(checkpoint=tmp_path / "model.safetensors"), model)


@pytest.mark.parametrize("patch_order", ["channels_first", "channels_last"])
def test_timm_reads_it(tmp_path: Path, patch_order: str) -> None:
    timm = pytest.importorskip("timm")
    model = vitfast.create_model("vit_tiny_patch16_224", depth=2, img_size=32, num_classes=5, patch_order=patch_order)
    vitfast.save_weights(model, tmp_path / "model.safetensors")
    theirs = timm.create_model(
        "vit_tiny_patch16_224", depth=2, img_size=32, num_classes=5, checkpoint_path=tmp_path / "model.safetensors"
    )
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(images), theirs.eval()(images), rtol=1e-4, atol=1e-6)


def test_what_timm_does_not_read_is_named(tmp_path: Path) -> None:
    """An epsilon of 1e-3 changes the logits by 18 %; timm computes with 1e-6 after it has loaded every key."""
    path, model = tmp_path / "model.safetensors", vitfast.create_model(NANO, layer_norm_eps=1e-3)
    with pytest.warns(UserWarning, match=r"only vitfast reads layer_norm_eps=0.001 from the file's metadata"):
        vitfast.save_weights(model, path)
    assert vitfast.create_model(checkpoint=path).fields.layer_norm_eps == 1e-3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vitfast.save_weights(vitfast.create_model(NANO), path)


def test_metadata(tmp_path: Path) -> None:
    model = vitfast.create_model(NANO, depth=1)
    vitfast.save_weights(model, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"  # timm and Hugging Face ask for it
    expected = {"format_version": 1, "model": {"name": NANO, "fields": model.model_fields}}
    assert json.loads(metadata["vitfast"]) == expected


def test_replaces_the_file_or_leaves_it_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    first, second = vitfast.create_model(NANO, depth=1), vitfast.create_model(NANO, depth=2)
    vitfast.save_weights(first, path)

    def fail(source: Path, target: Path) -> None:
        assert Path(source).exists()
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="no space left"):
            vitfast.save_weights(second, path)
    assert_same(vitfast.create_model(checkpoint=path), first)
    assert os.listdir(tmp_path) == ["model.safetensors"]
    vitfast.save_weights(second, path)
    assert_same(vitfast.create_model(checkpoint=path), second)


def test_wrong_arguments(tmp_path: Path) -> None:
    model = vitfast.create_model(NANO, depth=1)
    with pytest.raises(UserError, match=r"model\.pth must end in \.safetensors, .*; use model\.safetensors"):
        vitfast.save_weights(model, tmp_path / "model.pth")
    with pytest.raises(UserError, match=r"the folder .*nowhere does not exist; create it first"):
        vitfast.save_weights(model, tmp_path / "nowhere" / "model.safetensors")
    with pytest.raises(UserError, match=r"save_weights writes models from .*; got a Linear"):
        vitfast.save_weights(nn.Linear(1, 1), tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{", "its vitfast metadata is damaged"),
        ("{}", "its vitfast metadata is damaged"),
        ('{"model": {"name": 3, "fields": {}}}', "its vitfast metadata names no model"),
        ('{"model": {"name": "vit_none", "fields": {}}}', "unknown model 'vit_none'"),
        ({"widht": 3}, "unknown model field 'widht'"),
        ({"embed_dim": 1 << 30, "num_heads": 1}, "embed_dim is 64 in the file and 1073741824 in the model"),
        ({"depth": 1 << 30}, "depth is 1 in the file and 1073741824 in the model"),
        ({"num_classes": 1 << 40}, "num_classes is 1000 in the file and 1099511627776 in the model"),
        ({"img_size": 1 << 30}, "img_size is 8 in the file and 1073741824 in the model"),
    ],
)
def test_metadata_are_not_trusted(tmp_path: Path, change: Any, message: str) -> None:
    """What they claim is compared with the weights before anything of that size is built."""
    model, path = vitfast.create_model(NANO, depth=1), tmp_path / "model.safetensors"
    if isinstance(change, dict):
        change = json.dumps({"model": {"name": NANO, "fields": model.model_fields | change}})
    save_file(model.state_dict(), path, {"vitfast": change})
    with pytest.raises(UserError) as info:
        vitfast.create_model(checkpoint=path)
    assert message in str(info.value)
    assert str(path) in str(info.value)


def test_metadata_without_their_weights(tmp_path: Path) -> None:
    model, path = vitfast.create_model(NANO, depth=1), tmp_path / "model.safetensors"
    vitfast.save_weights(model, path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    state = load_file(path)
    del state["pos_embed"]
    save_file(state, path, metadata)
    with pytest.raises(UserError, match="lacks weights: they do not determine img_size"):
        vitfast.create_model(checkpoint=path)
