"""Weights in the original and Hugging Face's layouts: read again, and loaded by transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import vitfast
from support.foreign_weights import randomize, relative_error
from vitfast.errors import UserError

SIZES = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 56, "patch_size": 14}
SWIGLU = {"mlp_ratio": 4.0}  # 64 channels of each half
MODELS: list[Any] = [
    pytest.param("vit_small_patch14_dinov2", {}, "Dinov2Model", id="DINOv2"),
    pytest.param("vit_small_patch14_reg4_dinov2", {}, "Dinov2WithRegistersModel", id="registers"),
    pytest.param("vit_giant_patch14_dinov2", SWIGLU, "Dinov2Model", id="DINOv2, SwiGLU"),
    pytest.param("vit_small_patch16_dinov3_qkvb", {}, "DINOv3ViTModel", id="DINOv3"),
    pytest.param("vit_small_patch16_dinov3", {}, "DINOv3ViTModel", id="DINOv3 without biases"),
    pytest.param("vit_small_plus_patch16_dinov3_qkvb", SWIGLU, "DINOv3ViTModel", id="DINOv3, SwiGLU"),
    pytest.param("vit_base_patch16_clip_224", {"num_classes": 12}, "CLIPVisionModelWithProjection", id="CLIP"),
    pytest.param("vit_base_patch16_clip_quickgelu_224", {}, "CLIPVisionModel", id="CLIP without head"),
    pytest.param("vit_base_patch16_siglip_224", {}, "SiglipVisionModel", id="SigLIP"),
]


def tower(name: str, fields: dict[str, Any]) -> Any:
    model = randomize(vitfast.create_model(name, **{"num_classes": 0, **SIZES, **fields}))
    if model.num_classes:
        torch.nn.init.zeros_(model.head.bias)
    return model


@torch.inference_mode()
@pytest.mark.parametrize("layout", ["original", "huggingface"])
@pytest.mark.parametrize(("name", "fields", "kind"), MODELS)
def test_weights_are_read_again(name: str, fields: dict[str, Any], kind: str, layout: Any, tmp_path: Path) -> None:
    model = tower(name, fields)
    path = tmp_path / ("model.safetensors" if layout == "original" else "folder")
    if layout == "original" and "Siglip" in kind:
        with pytest.raises(UserError, match=r"layout='original' cannot be written for vit_base_patch16_siglip_224: .*"):
            vitfast.save_weights(model, path, layout=layout)
        return
    vitfast.save_weights(model, path, layout=layout)
    again = vitfast.create_model(name, **SIZES, **{"num_classes": 0, **fields}, checkpoint=path).eval()
    assert again.load_report.family.startswith("Hugging Face") == (layout == "huggingface")
    assert again.model_fields | {"position_interpolation": None} == model.model_fields | {
        "position_interpolation": None
    }
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


@torch.inference_mode()
@pytest.mark.parametrize(("name", "fields", "kind"), MODELS)
def test_transformers_loads_it(name: str, fields: dict[str, Any], kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = tower(name, fields)
    vitfast.save_weights(model, tmp_path / "folder", layout="huggingface")
    assert json.loads((tmp_path / "folder" / "config.json").read_text())["architectures"] == [kind]
    source, info = getattr(transformers, kind).from_pretrained(tmp_path / "folder", output_loading_info=True)
    assert not any(info.values()), info
    images: Tensor = torch.randn(2, 3, 56, 56)
    theirs = source.eval()(images)
    if kind == "CLIPVisionModelWithProjection":
        assert relative_error(model(images), theirs.image_embeds) < 1e-5
    elif "CLIP" in kind or "Siglip" in kind:
        assert relative_error(model(images), theirs.pooler_output) < 1e-5
    else:
        assert relative_error(model.forward_features(images), theirs.last_hidden_state) < 1e-5


def test_original_keys(tmp_path: Path) -> None:
    """Those of the released files, which their own models load strictly."""
    path = tmp_path / "model.safetensors"
    vitfast.save_weights(tower("vit_small_plus_patch16_dinov3_qkvb", SWIGLU), path, layout="original")
    keys = load_file(path).keys()
    block = {key.removeprefix("blocks.0.") for key in keys if key.startswith("blocks.0.")}
    layers = ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.w1", "mlp.w2", "mlp.w3")
    affine = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    assert block == affine | {"attn.qkv.bias_mask", "ls1.gamma", "ls2.gamma"}
    others = {"cls_token", "storage_tokens", "mask_token", "rope_embed.periods", "norm.weight", "norm.bias"}
    assert {key for key in keys if "blocks" not in key} == others | {"patch_embed.proj.weight", "patch_embed.proj.bias"}


@pytest.mark.parametrize(
    ("name", "fields", "layout", "message"),
    [
        ("vit_small_patch14_dinov2", {"num_classes": 5}, "huggingface", "without num_classes=5 instead of 0"),
        ("vit_small_patch14_dinov2", {"layer_norm_eps": 1e-5}, "original", "layer_norm_eps=1e-05 instead of 1e-06"),
        ("vit_small_patch14_dinov2", {"layer_scale": 0.0}, "original", "layer_scale=0 instead of a positive number"),
        ("vit_giant_patch14_dinov2", {"mlp_ratio": 3.0625}, "huggingface", "gives no MLP that Hugging Face can"),
        ("vit_small_patch14_dinov2", {}, "openai", "layout='openai' cannot be written .* layouts: timm, original"),
    ],
)
def test_what_a_layout_cannot_express(
    name: str, fields: dict[str, Any], layout: Any, message: str, tmp_path: Path
) -> None:
    model = vitfast.create_model(name, **{"num_classes": 0, **SIZES, **fields})
    with pytest.raises(UserError, match=message):
        vitfast.save_weights(model, tmp_path / "model.safetensors", layout=layout)


def test_a_head_with_a_bias_and_wrong_paths(tmp_path: Path) -> None:
    model = randomize(vitfast.create_model("vit_base_patch16_clip_224", **SIZES, num_classes=5))
    with pytest.raises(UserError, match="the head has a bias, which CLIP's projection has not"):
        vitfast.save_weights(model, tmp_path / "folder", layout="huggingface")
    assert list(tmp_path.iterdir()) == []
    torch.nn.init.zeros_(model.head.bias)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file; give a folder"):
        vitfast.save_weights(model, tmp_path / "file", layout="huggingface")
    with pytest.raises(UserError, match=r"the folder .*none does not exist"):
        vitfast.save_weights(model, tmp_path / "none" / "folder", layout="huggingface")
