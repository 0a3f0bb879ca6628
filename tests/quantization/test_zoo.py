"""Every family of models can be quantized; without rounding the results are bit-identical."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import vitfast
from support.operator_calls import count_roundings
from vitfast import FloatConfig, FloatFormat, FP16_16Config, FP16_32Config, Int8Config, QATConfig, quantize_

SMALL: dict[str, Any] = {"img_size": 32, "num_classes": 5}

# a ViT of depth 2 rounds 51 times, see test_quantize.py
MODELS = [
    pytest.param("vit_tiny_patch16_224", {"depth": 2}, 51, id="vit"),
    pytest.param("vit_tiny_patch16_224", {"depth": 2, "head_hidden_dim": 8}, 51 + 3, id="hidden head"),
    pytest.param("vit_tiny_patch16_224", {"depth": 2, "head_type": "norm_linear", "pooling": "mean"}, 51, id="myrtle"),
    pytest.param("vit_tiny_patch16_224", {"depth": 2, "patch_order": "channels_last"}, 51, id="channels last"),
    pytest.param("deit_tiny_distilled_patch16_224", {"depth": 2}, 51 + 3, id="distilled"),
    # LayerScale rounds nothing; positions are added to the patches alone, then the prefix joins
    pytest.param(
        "vit_small_patch14_reg4_dinov2",
        {"depth": 2, "img_size": 28, "layer_scale": 1.0},
        51,
        id="DINOv2",
    ),
    pytest.param(
        "vit_giant_patch14_dinov2",
        {"depth": 2, "img_size": 28, "embed_dim": 96, "num_heads": 2, "layer_scale": 1.0},
        51,
        id="SwiGLU",
    ),
    # no positions are added
    pytest.param(
        "vit_tiny_patch16_dinov3_qkvb",
        {"depth": 2, "layer_scale": 1.0},
        51 - 1,
        id="DINOv3",
    ),
    # a LayerNorm in each attention and MLP, four more with a gamma
    pytest.param(
        "eva02_base_patch16_clip_224",
        {"depth": 2, "embed_dim": 96, "num_heads": 2},
        55 + 8,
        id="EVA-02",
    ),
    pytest.param("vit_xsmall_patch16_clip_224", {"depth": 2, "gelu": "quick"}, 52 + 2, id="CLIP"),
    pytest.param("vit_base_patch16_siglip_224", {"depth": 2, "embed_dim": 96, "num_heads": 2}, 52 + 17, id="SigLIP"),
    # two projections instead of one; the class token joins later
    pytest.param("convit_tiny", {"depth": 2, "local_up_to_layer": 1}, 51 + 3, id="convit"),
]


@pytest.mark.parametrize(("name", "fields", "count"), MODELS)
def test_vitfasts_models(name: str, fields: dict[str, Any], count: int) -> None:
    model = vitfast.create_model(name, **{**SMALL, **fields}).eval()
    images = torch.randn(2, 3, model.img_size, model.img_size)
    expected = model(images)
    assert _roundings(model, images) == count
    for config in (FP16_16Config(), FP16_32Config(), Int8Config()):
        quantized = copy.deepcopy(model)
        quantize_(quantized, config)
        assert not torch.equal(quantized(images), expected)
        torch.testing.assert_close(quantized(images), expected, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("token", ["after_class", "last"])
def test_distilled_models_train(token: str) -> None:
    model = vitfast.create_model("deit_tiny_distilled_patch16_224", depth=1, distillation_token=token, **SMALL)
    quantize_(model, QATConfig(FP16_16Config()))
    logits, distillation = model(torch.randn(2, 3, 32, 32))
    (logits.sum() + distillation.sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["vit", "resnet18"])
def test_torchvisions_models(name: str) -> None:
    if name == "vit":
        sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}
        model: nn.Module = torchvision.models.VisionTransformer(32, 16, num_classes=5, **sizes)
        nn.init.normal_(model.get_parameter("heads.head.weight"), std=0.05)
    else:
        model = vitfast.create_model(f"torchvision/{name}", **SMALL)
    model, images = model.eval(), torch.randn(2, 3, 32, 32)
    expected = model(images)
    for config in (FP16_32Config(), Int8Config()):
        quantized = copy.deepcopy(model)
        quantize_(quantized, QATConfig(config))
        assert not torch.equal(quantized(images), expected)
        torch.testing.assert_close(quantized(images), expected, atol=0.1, rtol=0.1)
        with vitfast.disable_fake_quantize(quantized):
            assert torch.equal(quantized(images), expected)
    if name == "resnet18":  # the additions in its code have no counterpart
        with pytest.warns(UserWarning, match="ResNet"):
            quantize_(model, FP16_16Config())


def test_torchvisions_attention_has_both_projections() -> None:
    """Torch's own code reads the weights of the output projection, past its forward."""
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = torch.randn(2, 5, 8)

    def fp16(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.half().float()

    out = attention.out_proj
    qkv = F.linear(fp16(x), fp16(attention.in_proj_weight), attention.in_proj_bias)
    q, k, v = qkv.view(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    expected = F.linear(fp16(attended), fp16(out.weight), out.bias)

    model = nn.ModuleList([attention])
    quantize_(model, FP16_32Config())
    assert torch.equal(attention(x, x, x, need_weights=False)[0], expected)
    with pytest.raises(vitfast.UserError, match="need_weights=False"):
        attention(x, x, x)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("vit_tiny_patch16_224", {"depth": 2}, 51),
        ("vit_tiny_patch16_224", {"depth": 2, "no_embed_class": True, "reg_tokens": 2}, 51),
        ("vit_tiny_patch16_224", {"depth": 2, "init_values": 0.5, "qk_norm": True}, 55 + 8),
        ("deit_tiny_distilled_patch16_224", {"depth": 2}, 51 + 3),
    ],
)
def test_timms_models(name: str, options: dict[str, Any], count: int) -> None:
    timm = pytest.importorskip("timm")
    model, images = timm.create_model(name, **SMALL, **options).eval(), torch.randn(2, 3, 32, 32)
    nn.init.normal_(model.head.weight, std=0.05)
    expected = model(images)
    assert _roundings(model, images) == count
    identity = copy.deepcopy(model)
    quantize_(identity, FloatConfig(FloatFormat.ieee(8, 23), round_results=True))
    assert torch.equal(identity(images), expected)
    for config in (FP16_16Config(), Int8Config()):
        quantized = copy.deepcopy(model)
        quantize_(quantized, QATConfig(config))
        assert list(quantized.state_dict()) == list(model.state_dict())
        assert not torch.equal(quantized(images), expected)
        torch.testing.assert_close(quantized(images), expected, atol=0.1, rtol=0.1)
        with vitfast.disable_fake_quantize(quantized):
            assert torch.equal(quantized(images), expected)


def test_timm_block_rounds_by_the_table() -> None:
    transformer = pytest.importorskip("timm.models.vision_transformer")
    block = transformer.Block(32, 2, qkv_bias=True).eval()
    x = torch.randn(2, 5, 32)

    def fp16(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.half().float()

    def linear(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        return fp16(F.linear(fp16(x), fp16(layer.weight), layer.bias))

    def norm(layer: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
        return fp16(F.layer_norm(fp16(x), (32,), fp16(layer.weight), layer.bias, layer.eps))

    q, k, v = linear(block.attn.qkv, norm(block.norm1, x)).view(2, 5, 3, 2, 16).permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    middle = fp16(x + linear(block.attn.proj, attended))
    hidden = F.gelu(linear(block.mlp.fc1, norm(block.norm2, middle)))
    expected = fp16(middle + linear(block.mlp.fc2, hidden))

    model = nn.Sequential(block)
    quantize_(model, QATConfig(FP16_16Config()))
    assert torch.equal(model(x), expected)


def test_timms_dynamic_image_size() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", depth=1, dynamic_img_size=True, **SMALL).eval()
    with pytest.raises(vitfast.UserError, match="dynamic_img_size"):
        quantize_(model, FP16_16Config())
    quantize_(model, FP16_32Config())
    assert model(torch.randn(1, 3, 48, 48)).shape == (1, 5)


def _roundings(model: nn.Module, images: torch.Tensor) -> int:
    """Counts the roundings of a forward pass of the prepared model in FP16_16."""
    model = copy.deepcopy(model)
    quantize_(model, QATConfig(FP16_16Config()))
    with count_roundings() as counter:
        model(images)
    return counter.count


def test_standardized_kernels_of_hybrids_are_rounded() -> None:
    name = next(iter(vitfast.list_models("*r26*") or vitfast.list_models("*r50*")))
    fields = {"embed_dim": 32, "depth": 1, "num_heads": 2, "resnet_layers": (1,), "resnet_width": 32}
    model = vitfast.create_model(name, img_size=64, num_classes=5, **fields).eval()
    images = torch.randn(1, 3, 64, 64)
    conv = next(module for module in model.modules() if type(module).__name__ == "StdConv2d")
    x = torch.randn(1, conv.in_channels, 9, 9)
    expected, before = conv(x), model(images)
    kernels = conv.standardized_weight().half().float()
    quantize_(model, FP16_32Config())
    plain = copy.deepcopy(conv)
    plain.standardized_weight = lambda: kernels  # type: ignore[method-assign]
    with vitfast.disable_fake_quantize(plain):
        rounded = plain(x.half().float())
    assert torch.equal(conv(x), rounded)
    assert not torch.equal(conv(x), expected)
    torch.testing.assert_close(model(images), before, atol=0.05, rtol=0.05)
    assert not torch.equal(model(images), before)
