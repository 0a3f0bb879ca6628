"""Image towers of Hugging Face, open_clip and the original DINOv2 give the same features in vitfast."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vitfast
from support.foreign_weights import randomize, relative_error

DEPTH, TOLERANCE = 2, 1e-5
SIZES = {"embed_dim": 32, "depth": DEPTH, "num_heads": 2, "img_size": 56, "patch_size": 14}


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, 56, 56)


def foreign(kind: str, config: str, **options: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="Hugging Face's transformers is not installed")
    sizes = {"hidden_size": 32, "num_hidden_layers": DEPTH, "num_attention_heads": 2, "image_size": 56}
    return randomize(getattr(transformers, kind)(getattr(transformers, config)(**sizes, patch_size=14, **options)))


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "kind", "fields"),
    [
        ("vit_small_patch14_dinov2", "Dinov2", {}),
        ("vit_giant_patch14_dinov2", "Dinov2", {"mlp_ratio": 5.5}),
        ("vit_small_patch14_reg4_dinov2", "Dinov2WithRegisters", {}),
    ],
)
@pytest.mark.parametrize("in_memory", [False, True])
def test_dinov2(name: str, kind: str, fields: dict[str, Any], in_memory: bool, tmp_path: Path, images: Tensor) -> None:
    source = foreign(f"{kind}Model", f"{kind}Config", use_swiglu_ffn="giant" in name)
    source.save_pretrained(tmp_path)
    path = tmp_path
    if in_memory:
        path = tmp_path / "state.bin"
        torch.save(source.state_dict(), path)
    model = vitfast.create_model(name, **SIZES, **fields, checkpoint=path).eval()
    assert model.load_report.skipped == ("embeddings.mask_token",)
    expected = source(images).last_hidden_state
    assert relative_error(model.forward_features(images), expected) < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("has_text_tower", [False, True])
def test_hugging_faces_clip(has_text_tower: bool, tmp_path: Path, images: Tensor) -> None:
    source = foreign("CLIPVisionModelWithProjection", "CLIPVisionConfig", intermediate_size=128, projection_dim=24)
    if has_text_tower:
        import transformers

        text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        vision = source.config.to_dict()
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
        whole = randomize(transformers.CLIPModel(config))
        source.load_state_dict({key: whole.state_dict()[key] for key in source.state_dict()})
        whole.save_pretrained(tmp_path)
    else:
        source.save_pretrained(tmp_path)
    model = vitfast.create_model("vit_base_patch16_clip_224", **SIZES, checkpoint=tmp_path).eval()
    assert (model.fields.gelu, model.num_classes) == ("quick", 24)
    assert relative_error(model(images), source(images).image_embeds) < TOLERANCE


@torch.inference_mode()
def test_hugging_faces_siglip(tmp_path: Path, images: Tensor) -> None:
    source = foreign("SiglipVisionModel", "SiglipVisionConfig", intermediate_size=128)
    source.save_pretrained(tmp_path)
    model = vitfast.create_model("vit_base_patch16_siglip_224", **SIZES, checkpoint=tmp_path).eval()
    assert model.fields.gelu == "tanh"
    assert relative_error(model(images), source(images).pooler_output) < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("has_text_tower", [False, True])
def test_open_clips_clip(has_text_tower: bool, tmp_path: Path, images: Tensor) -> None:
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": 56, "layers": DEPTH, "width": 32, "head_width": 16, "patch_size": 14}
    text = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
    source = randomize(open_clip.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text, quick_gelu=True))
    state = {key: value for key, value in source.state_dict().items() if has_text_tower or key.startswith("visual.")}
    torch.save(state, tmp_path / "clip.pt")
    model = vitfast.create_model("vit_base_patch16_clip_quickgelu_224", **SIZES, checkpoint=tmp_path / "clip.pt").eval()
    assert relative_error(model(images), source.encode_image(images)) < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", "vit_giant_patch14_dinov2"])
def test_facebooks_dinov2(name: str, tmp_path: Path, images: Tensor) -> None:
    """The original keys, with the class token's position apart from it, of the model that timm's keys describe."""
    expected = randomize(vitfast.create_model(name, **SIZES, mlp_ratio=4.0, num_classes=0))
    state = expected.state_dict() | {"mask_token": torch.zeros(1, 32)}
    if "reg_token" in state:
        position = torch.randn(1, 1, 32)
        state["register_tokens"] = state.pop("reg_token")
        state |= {"cls_token": state["cls_token"] - position}
        state["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
    else:
        state = {re.sub(r"mlp\.fc([12])", lambda found: f"mlp.w{'12' if found[1] == '1' else '3'}", key): value
                 for key, value in state.items()}  # fmt: skip
    torch.save(state, tmp_path / "dinov2.pth")
    model = vitfast.create_model(name, **SIZES, mlp_ratio=4.0, checkpoint=tmp_path / "dinov2.pth").eval()
    assert model.load_report.family == "DINOv2"
    assert relative_error(model(images), expected(images)) < TOLERANCE
