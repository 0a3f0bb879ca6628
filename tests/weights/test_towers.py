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
from vitfast.errors import UserError

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
def test_openais_clip(tmp_path: Path, images: Tensor) -> None:
    """A TorchScript program in half precision, with both towers."""
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": 56, "layers": DEPTH, "width": 32, "head_width": 16, "patch_size": 14}
    text = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
    source = randomize(open_clip.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text, quick_gelu=True))
    program = torch.jit.trace(source, (images, torch.zeros(2, 8, dtype=torch.long)), check_trace=False)
    torch.jit.save(program.half(), tmp_path / "ViT-B-32.pt")
    name = "vit_base_patch16_clip_quickgelu_224"
    model = vitfast.create_model(name, **SIZES, checkpoint=tmp_path / "ViT-B-32.pt").eval()
    assert model.load_report.family == "CLIP"
    assert relative_error(model(images), source.half().float().encode_image(images)) < TOLERANCE


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


@torch.inference_mode()
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("key_bias", [False, True])
def test_hugging_faces_dinov3(gated: bool, key_bias: bool, tmp_path: Path, images: Tensor) -> None:
    options = {"num_register_tokens": 4, "intermediate_size": 64, "key_bias": key_bias, "use_gated_mlp": gated}
    source = foreign("DINOv3ViTModel", "DINOv3ViTConfig", hidden_act="silu" if gated else "gelu", **options)
    source.save_pretrained(tmp_path)
    name = f"vit_small_{'plus_' if gated else ''}patch16_dinov3"
    fields = {**SIZES, "mlp_ratio": 4.0 if gated else 2.0}
    model = vitfast.create_model(name, **fields, checkpoint=tmp_path).eval()
    assert model.load_report.skipped == ("embeddings.mask_token",)
    assert (model.fields.qkv_bias, model.fields.key_bias) == (True, key_bias)
    assert relative_error(model.forward_features(images), source(images).last_hidden_state) < TOLERANCE


def test_options_of_dinov3_without_a_field(tmp_path: Path) -> None:
    options = {"num_register_tokens": 4, "intermediate_size": 64, "use_gated_mlp": True}
    foreign("DINOv3ViTModel", "DINOv3ViTConfig", **options).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"has hidden_act='gelu', which .* DINOv3; supported: 'silu'"):
        vitfast.create_model("vit_small_plus_patch16_dinov3", **SIZES, mlp_ratio=4.0, checkpoint=tmp_path)


def facebooks_dinov3(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The original keys of a model's weights: all biases in one tensor, with a mask, and SwiGLUs in three layers."""
    original = {"mask_token": torch.zeros(1, 32), "rope_embed.periods": torch.ones(4)}
    for key, value in state.items():
        if key.endswith("q_bias"):
            key, value = (
                key.replace("q_bias", "qkv.bias"),
                torch.cat([value, torch.zeros(32), state[key[:-6] + "v_bias"]]),
            )
            original[f"{key}_mask"] = torch.ones(96).index_fill(0, torch.arange(32, 64), 0.0)
        elif key.endswith("v_bias"):
            continue
        elif "plus.mlp.fc1" in key:
            gate, up = value.chunk(2)
            original[key.replace("plus.mlp.fc1", "mlp.w1")] = gate
            key, value = key.replace("plus.mlp.fc1", "mlp.w2"), up
        original[key.replace("plus.mlp.fc2", "mlp.w3").replace("reg_token", "storage_tokens")] = value
    return original


@torch.inference_mode()
@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3_qkvb", "vit_small_plus_patch16_dinov3"])
def test_facebooks_dinov3(name: str, tmp_path: Path, images: Tensor) -> None:
    expected = randomize(vitfast.create_model(name, **SIZES, mlp_ratio=4.0, num_classes=0))
    mlp = ".plus.mlp" if "plus" in name else ".mlp"
    state = {key.replace(".mlp", mlp): value for key, value in expected.state_dict().items()}
    torch.save(facebooks_dinov3(state), tmp_path / "dinov3.pth")
    model = vitfast.create_model(name, **SIZES, mlp_ratio=4.0, checkpoint=tmp_path / "dinov3.pth").eval()
    assert model.load_report.family == "DINOv3"
    assert model.fields.qkv_bias == ("qkvb" in name)
    assert relative_error(model(images), expected(images)) < 1e-7
    with pytest.raises(UserError, match="rotary is 'dinov3' in the file and 'none' in the model"):
        vitfast.create_model(name, **SIZES, mlp_ratio=4.0, rotary="none", checkpoint=tmp_path / "dinov3.pth")


_EVA02_NAMES = (
    *((".mlp.fc1_g", ".mlp.w1"), (".mlp.fc1_x", ".mlp.w2"), (".mlp.fc1.", ".mlp.w12."), (".mlp.fc2", ".mlp.w3")),
    *((".mlp.norm", ".mlp.ffn_ln"), (".attn.norm", ".attn.inner_attn_ln"), ("q_proj.bias", "q_bias")),
    ("v_proj.bias", "v_bias"),
)


@torch.inference_mode()
@pytest.mark.parametrize("is_original", [False, True])
@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "eva02_base_patch14_224", "eva02_base_patch16_clip_224"])
def test_eva02(name: str, is_original: bool, tmp_path: Path, images: Tensor) -> None:
    """Weights of timm, and the same under the original keys, as timm's ``checkpoint_filter_fn`` reads them."""
    timm = pytest.importorskip("timm")
    sizes = {**SIZES, "mlp_ratio": 4.0}
    source = randomize(timm.create_model(name, **sizes, num_classes=5))
    state = source.state_dict()
    if is_original:
        prefix = "visual." if "clip" in name else ""
        for ours, theirs in _EVA02_NAMES:
            state = {key.replace(ours, theirs): value for key, value in state.items()}
        state = {f"{prefix}{key}": value for key, value in state.items()}
        state |= {f"{prefix}rope.freqs_cos": torch.zeros(16, 16), "logit_scale": torch.zeros(())}
        assert filtered(state, source).keys() == source.state_dict().keys()
    torch.save(state, tmp_path / "eva.pt")
    model = vitfast.create_model(name, **{**sizes, "mlp_ratio": 8.0}, checkpoint=tmp_path / "eva.pt").eval()
    assert model.load_report.family == ("EVA-02" if is_original else "timm EVA")
    assert relative_error(model(images), source(images)) < TOLERANCE
    vitfast.save_weights(model, tmp_path / "again.safetensors")
    again = timm.create_model(name, **sizes, num_classes=5, checkpoint_path=tmp_path / "again.safetensors").eval()
    assert torch.equal(again(images), source(images))
    assert torch.equal(vitfast.create_model(checkpoint=tmp_path / "again.safetensors").eval()(images), model(images))


def filtered(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    from timm.models.eva import checkpoint_filter_fn

    return {key: value for key, value in checkpoint_filter_fn(state, model).items() if key != "logit_scale"}


def test_eva02_before_fine_tuning(tmp_path: Path) -> None:
    """The last LayerNorm becomes that behind the pooling, and there is no head."""
    expected = vitfast.create_model("eva02_tiny_patch14_224", **SIZES, num_classes=0).state_dict()
    state = {key.replace("fc_norm", "norm").replace(".fc1.", ".w12.").replace(".fc2.", ".w3."): value
             for key, value in randomize_state(expected).items()}  # fmt: skip
    state |= {"mask_token": torch.zeros(1, 1, 32), "lm_head.weight": torch.zeros(8, 32)}
    torch.save(state, tmp_path / "eva.pt")
    model = vitfast.create_model("eva02_tiny_patch14_224", **SIZES, checkpoint=tmp_path / "eva.pt")
    assert torch.equal(model.fc_norm.weight, state["norm.weight"])
    assert model.load_report.skipped == ("mask_token", "lm_head.weight")


def randomize_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: torch.randn_like(value) for key, value in state.items()}


@torch.inference_mode()
@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3_qkvb", "vit_small_plus_patch16_dinov3"])
def test_timms_dinov3(name: str, tmp_path: Path, images: Tensor) -> None:
    timm = pytest.importorskip("timm")
    source = randomize(timm.create_model(name, **SIZES, num_classes=5))
    torch.save(source.state_dict(), tmp_path / "timm.pt")
    model = vitfast.create_model(name, **SIZES, checkpoint=tmp_path / "timm.pt").eval()
    assert relative_error(model(images), source(images)) < TOLERANCE
    vitfast.save_weights(model, tmp_path / "again.safetensors")
    timms = timm.create_model(name, **SIZES, num_classes=5, checkpoint_path=tmp_path / "again.safetensors").eval()
    assert torch.equal(timms(images), source(images))
    larger = vitfast.create_model(checkpoint=tmp_path / "again.safetensors", img_size=70).eval()
    larger_images = torch.randn(1, 3, 70, 70)
    assert relative_error(larger(larger_images), source(larger_images)) < TOLERANCE
