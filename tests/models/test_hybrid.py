"""Hybrids: timm is the oracle for names, keys and logits; Google for the numbers of parameters."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from support.fill_from_state import fill_from_state
from support.slow import slow
from vitfast.errors import UserError
from vitfast.inference.attention_maps import attention_maps
from vitfast.layers import Bottleneck, StdConv2d
from vitfast.models import HybridFields, HybridViT, build_model, list_models
from vitfast.models.registry import ARCHITECTURES, resolve_name

timm = pytest.importorskip("timm")

TIMM = {"weight_eps": 1e-8, "weight_eps_place": "variance", "group_norm_eps": 1e-5}
JEONSWORLD = {"resnet_padding": "symmetric", "weight_eps_place": "variance", "projection_norm": "channel"}
SMALL = {"img_size": 48, "resnet_layers": (1, 1), "resnet_width": 32, "embed_dim": 48, "num_heads": 3, "depth": 2}
NAMES = [
    "vit_base_r26_s32_224",
    "vit_base_r26_s32_384",
    "vit_base_r50_s16_224",
    "vit_base_r50_s16_384",
    "vit_large_r50_s32_224",
    "vit_large_r50_s32_384",
    "vit_small_r26_s32_224",
    "vit_small_r26_s32_384",
    "vit_tiny_r_s16_p8_224",
    "vit_tiny_r_s16_p8_384",
]
TIMMS = [name for name in NAMES if name in timm.list_models()]


def random_state(model: nn.Module) -> dict[str, Tensor]:
    """Nothing is at its initial value; kernels are so small that the epsilon of their standardization counts."""
    return {
        key: torch.randn(value.shape) * (3e-4 if "conv" in key else 0.05)
        + (1.0 if "norm" in key and key.endswith("weight") else 0.0)
        for key, value in model.state_dict().items()
    }


def build_pair(name: str, **both: Any) -> tuple[nn.Module, nn.Module]:
    """Builds a model here and in timm around the same random parameters, without initializing either."""
    both = {"num_classes": 1000, **both}
    with torch.device("meta"):
        model, timm_model = build_model(name, **TIMM, **both), timm.create_model(name, **both)
    state = random_state(model)
    model.load_state_dict(state, assign=True)
    timm_model.load_state_dict(state, assign=True)
    return model.eval(), timm_model.eval()


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).norm() / expected.norm() <= 1e-4


def test_names() -> None:
    assert [name for name in list_models() if isinstance(ARCHITECTURES[name], HybridFields)] == NAMES
    assert len(TIMMS) == 9  # timm has no vit_base_r26_s32_384


# another image size changes the position embedding alone
@pytest.mark.parametrize("name", [*TIMMS[::2], *slow(TIMMS[1::2])])
def test_parameters_have_timms_names_and_shapes(name: str) -> None:
    with torch.device("meta"):
        model, timm_model = build_model(name), timm.create_model(name, num_classes=1000)
    assert {key: value.shape for key, value in model.state_dict().items()} == {
        key: value.shape for key, value in timm_model.state_dict().items()
    }
    assert (model.num_classes, model.in_chans) == (timm_model.num_classes, timm_model.in_chans)
    assert (model.img_size, model.img_size) == timm_model.patch_embed.img_size
    assert (model.fields.grid_size,) * 2 == timm_model.patch_embed.grid_size


@pytest.mark.parametrize("name", ["vit_tiny_r_s16_p8_224", "vit_base_r50_s16_224"])
def test_logits_of_a_small_transformer_equal_timms(name: str) -> None:
    """The complete ResNet; with Google's conventions the result differs."""
    small = {"depth": 1, "img_size": 64, "embed_dim": 48, "num_heads": 3, "num_classes": 10}
    model, timm_model = build_pair(name, **small)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = timm_model(images)
        assert_close(model(images), expected)
        with torch.device("meta"):
            google = build_model(name, **small)
        google.load_state_dict(model.state_dict(), assign=True)
        assert (google.eval()(images) - expected).norm() / expected.norm() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMMS)
def test_logits_equal_timms(name: str) -> None:
    model, timm_model = build_pair(name)
    images = torch.randn(1, 3, model.img_size, model.img_size)
    with torch.inference_mode():
        assert_close(model(images), timm_model(images))


def test_gradients_equal_timms() -> None:
    model, timm_model = build_pair("vit_tiny_r_s16_p8_224", depth=1, img_size=64)
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([3, 1])
    gradients = []
    for each in (model, timm_model):
        parameters = dict(each.named_parameters())
        loss = F.cross_entropy(each(images), labels)
        gradients.append(dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True)))
    ours, theirs = gradients
    for key, expected in theirs.items():
        assert (ours[key] - expected).norm() / expected.norm() <= 1e-3, key


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("R50-ViT-B_16", "vit_base_r50_s16_224"),
        ("R50+ViT-B_16", "vit_base_r50_s16_224"),
        ("R50+ViT-L_32", "vit_large_r50_s32_224"),
        ("R26+ViT-S_32", "vit_small_r26_s32_224"),
        ("R26+ViT-B_32", "vit_base_r26_s32_224"),
        ("R+ViT-Ti_16", "vit_tiny_r_s16_p8_224"),
        ("vit_base_r50_s16_384.orig_in21k_ft_in1k", "vit_base_r50_s16_384"),
    ],
)
def test_aliases(alias: str, name: str) -> None:
    assert resolve_name(alias) == name


@pytest.mark.parametrize("conventions", [{}, TIMM, JEONSWORLD], ids=["google", "timm", "jeonsworld"])
def test_a_step_of_training_reaches_everything(conventions: dict[str, Any]) -> None:
    model = build_model("R50-ViT-B_16", **SMALL, num_classes=5, **conventions)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    F.cross_entropy(model(torch.randn(2, 3, 48, 48)), torch.tensor([1, 4])).backward()
    assert [key for key, value in model.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_initialization() -> None:
    """Every bottleneck begins as its shortcut; kernels have the variance 1 / fan-in."""
    model = build_model("R50-ViT-B_16", **SMALL)
    for module in model.modules():
        if isinstance(module, StdConv2d):
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx(fan_in**-0.5, rel=0.1)
        elif isinstance(module, Bottleneck):
            assert not module.norm3.weight.any()
            assert (module.norm2.weight == 1).all()


def test_attention_maps() -> None:
    model = build_model("R50-ViT-B_16", **SMALL).eval()
    maps = attention_maps(model, torch.randn(2, 3, 48, 48))
    assert [list(one.shape) for one in maps] == [[2, 3, 37, 37]] * 2


def test_positions_are_resized() -> None:
    small, large = build_model("R50-ViT-B_16", **SMALL), build_model("R50-ViT-B_16", **{**SMALL, "img_size": 64})
    report = fill_from_state(large, small.state_dict(), "memory", may_resize=True)
    assert report.resized == ("pos_embed",)
    assert isinstance(large, HybridViT)
    assert torch.equal(large.patch_embed.backbone.stem.conv.weight, small.patch_embed.backbone.stem.conv.weight)
    with pytest.raises(UserError, match="pos_embed"):
        fill_from_state(large, small.state_dict(), "memory")


def test_wrong_images_say_what_is_expected() -> None:
    model = build_model("R50-ViT-B_16", **SMALL)
    with pytest.raises(ValueError, match=r"images must have shape \[B, 3, 48, 48\]"):
        model(torch.randn(1, 3, 64, 64))


def test_bfloat16_and_autocast_stay_close() -> None:
    model = build_model("R50-ViT-B_16", **SMALL).eval()
    model.load_state_dict(random_state(model))
    images = torch.randn(2, 3, 48, 48)
    with torch.inference_mode():
        expected = model(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            by_autocast = model(images)
        in_bfloat16 = model.bfloat16()(images.bfloat16())
    for actual in (by_autocast.float(), in_bfloat16.float()):
        assert (actual - expected).norm() / expected.norm() < 0.05


# --- fields -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resnet_width": 48}, "resnet_width must be a multiple of 32, the groups of its norms; got 48"),
        ({"resnet_width": 0}, "resnet_width must be a multiple of 32"),
        ({"resnet_layers": (3, 0)}, r"resnet_layers must have numbers of at least 1; got \(3, 0\)"),
        ({"resnet_layers": 3}, "resnet_layers must be a list of whole numbers; got 3"),
        ({"resnet_layers": "349"}, "resnet_layers must be a list of whole numbers; got '349'"),
        ({"resnet_padding": "valid"}, "resnet_padding must be one of 'same', 'symmetric'; got 'valid'"),
        ({"weight_eps": 0.0}, "weight_eps must be above 0"),
        ({"weight_eps_place": "mean"}, "weight_eps_place must be one of 'deviation', 'variance'"),
        ({"group_norm_eps": -1e-6}, "group_norm_eps must be above 0"),
        ({"projection_norm": "layer"}, "projection_norm must be one of 'group', 'channel'"),
        ({"distillation_token": "last"}, "distillation_token must be one of 'none'; got 'last'"),
        ({"patch_order": "channels_last"}, "patch_order must be one of 'channels_first'"),
        ({"patch_size": 0}, "patch_size must be at least 1"),
        (
            {"patch_size": 8, "resnet_layers": (), "img_size": 228},
            "img_size=228 gives 57 features along a side, which is not a multiple of patch_size=8; the nearest "
            "img_size that works: 224",
        ),
        (
            {"resnet_padding": "symmetric", "img_size": 4},
            "img_size=4 gives 0 features along a side, which is not a multiple of patch_size=1; .* works: 5",
        ),
    ],
)
def test_refused_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        HybridFields(**fields)


@pytest.mark.parametrize(
    ("fields", "grid_size"),
    [
        ({}, 14),
        ({"img_size": 384}, 24),
        ({"img_size": 384, "resnet_padding": "symmetric"}, 24),
        ({"resnet_layers": (3, 4, 6, 3)}, 7),
        ({"resnet_layers": [3, 4, 6, 3], "img_size": 384}, 12),
        ({"resnet_layers": (), "patch_size": 8}, 7),
        ({"resnet_layers": (), "patch_size": 8, "img_size": 384}, 12),
        ({"img_size": 200}, 13),
    ],
)
def test_grid_size(fields: dict[str, Any], grid_size: int) -> None:
    assert HybridFields(**fields).grid_size == grid_size


def test_the_fields_survive_json() -> None:
    fields = HybridFields(resnet_layers=(2, 2), projection_norm="channel", weight_eps=1e-8)
    assert HybridFields(**json.loads(json.dumps(asdict(fields)))) == fields
