"""T2T-ViT against its equations, at small sizes; parameter counts cover the large ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from support import t2t_equations
from support.fill_from_state import fill_from_state
from support.t2t_equations import linear, norm
from vitfast.errors import UserError
from vitfast.layers import resize_position_embedding, sinusoidal_positions
from vitfast.models import T2TViT, build_model, list_models

SMALL = {"img_size": 32, "num_classes": 5, "embed_dim": 24, "depth": 2, "num_heads": 2, "token_dim": 16}


def small(name: str = "t2t_vit_7", **fields: Any) -> T2TViT:
    """A small model in which no parameter is zero or one, the random features apart."""
    model = build_model(name, **{**SMALL, **fields})
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, mean=1.0 if "norm" in key and key.endswith("weight") else 0.0, std=0.1)
    return model


def equations(model: T2TViT, images: Tensor) -> Tensor:
    state, fields = dict(model.named_parameters()), model.fields
    eps, heads = fields.layer_norm_eps, fields.num_heads
    split = (fields.patch_size, fields.patch_stride, fields.patch_padding)
    x = t2t_equations.tokens_to_token(state, "tokens_to_token", images, split, eps)
    x = t2t_equations.with_class_token(state, "", x)
    for index in range(fields.depth):
        x = t2t_equations.block(state, f"blocks.{index}", x, heads, eps)
    return linear(state, "head", norm(state, "norm", x, eps)[:, 0])


@pytest.mark.parametrize("fields", [{}, {"tokens_type": "transformer"}, {"qkv_bias": True, "layer_norm_eps": 1e-2}])
def test_logits_and_gradients(fields: dict[str, Any]) -> None:
    model, images = small(**fields).double().eval(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    logits, expected = model(images), equations(model, images)
    torch.testing.assert_close(logits, expected)
    learning = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    weights = torch.randn_like(logits)
    gradients, references = (
        torch.autograd.grad((y * weights).sum(), list(learning.values())) for y in (logits, expected)
    )
    for key, gradient, reference in zip(learning, gradients, references, strict=True):
        torch.testing.assert_close(gradient, reference, msg=lambda text, key=key: f"{key}: {text}")
        assert gradient.any(), key


@pytest.mark.parametrize("name", ["t2t_vit_7", "t2t_vit_t_14"])
def test_keys_are_those_of_the_original_code(name: str) -> None:
    layer = ["norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"]
    if name == "t2t_vit_7":
        layer += ["w", *(f"{part}.{kind}" for part in ("kqv", "proj", "mlp.0", "mlp.2") for kind in ("weight", "bias"))]
    else:
        layer += ["attn.qkv.weight"]
        layer += [f"{part}.{kind}" for part in ("attn.proj", "mlp.fc1", "mlp.fc2") for kind in ("weight", "bias")]
    parts = ("norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2")
    block = ["attn.qkv.weight", *(f"{part}.{kind}" for part in parts for kind in ("weight", "bias"))]
    expected = {
        *(f"tokens_to_token.attention{index}.{key}" for index in (1, 2) for key in layer),
        *(f"tokens_to_token.project.{kind}" for kind in ("weight", "bias")),
        *(f"blocks.{index}.{key}" for index in range(2) for key in block),
        *(f"{part}.{kind}" for part in ("norm", "head") for kind in ("weight", "bias")),
        "cls_token",
        "pos_embed",
    }
    assert set(small(name).state_dict()) == expected


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("t2t_vit_7", (256, 7, 4, 2.0, "performer")),
        ("t2t_vit_10", (256, 10, 4, 2.0, "performer")),
        ("t2t_vit_12", (256, 12, 4, 2.0, "performer")),
        ("t2t_vit_14", (384, 14, 6, 3.0, "performer")),
        ("t2t_vit_19", (448, 19, 7, 3.0, "performer")),
        ("t2t_vit_24", (512, 24, 8, 3.0, "performer")),
        ("t2t_vit_t_14", (384, 14, 6, 3.0, "transformer")),
        ("t2t_vit_t_19", (448, 19, 7, 3.0, "transformer")),
        ("t2t_vit_t_24", (512, 24, 8, 3.0, "transformer")),
    ],
)
def test_sizes(name: str, sizes: tuple[Any, ...]) -> None:
    with torch.device("meta"):
        model = build_model(f"T{name[1:]}")  # the alias
    fields = model.fields
    assert model.model_name == name
    assert (fields.embed_dim, fields.depth, fields.num_heads, fields.mlp_ratio, fields.tokens_type) == sizes
    assert (fields.layer_norm_eps, fields.qkv_bias, fields.grid_size) == (1e-5, False, 14)


def test_all_sizes_are_listed() -> None:
    assert len(list_models("t2t_vit_*")) == 9


def test_positions_are_fixed_and_nothing_of_them_decays() -> None:
    model = build_model("t2t_vit_7", **SMALL)
    assert torch.equal(model.pos_embed, sinusoidal_positions(5, 24))
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == [
        "pos_embed",
        "tokens_to_token.attention1.w",
        "tokens_to_token.attention2.w",
    ]
    assert model.no_weight_decay() == {"cls_token", "pos_embed"}


def test_initialization() -> None:
    model = build_model("t2t_vit_7", img_size=32, depth=1)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        elif parameter.requires_grad:
            # the deviation of n draws is known to about 1 / sqrt(2 n)
            assert parameter.std().item() == pytest.approx(0.02, rel=6 / (2 * parameter.numel()) ** 0.5), name


def test_weights_of_another_image_size() -> None:
    """An image of 48 has three tokens along a side, one of 32 two."""
    saved, model = small(img_size=48), small()
    fill_from_state(model, saved.state_dict(), "t2t.safetensors", may_resize=True)
    assert torch.equal(model.pos_embed, resize_position_embedding(saved.pos_embed, 2))
    with pytest.raises(UserError, match=r"other shape: pos_embed .*; give img_size"):
        fill_from_state(model, saved.state_dict(), "t2t.safetensors")


def test_without_head() -> None:
    model, images = small(num_classes=0).eval(), torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), model.forward_features(images)[:, 0])
    assert model(images).shape == (2, 24)


def test_rates_reach_the_parts() -> None:
    model = small(depth=3, drop_rate=0.1, attention_drop_rate=0.2, drop_path=0.4, token_drop_rate=0.3)
    assert [block.drop_path.rate for block in model.blocks] == pytest.approx([0.0, 0.2, 0.4])
    assert {block.attn.proj_drop.p for block in model.blocks} == {model.pos_drop.p} == {0.1}
    assert {block.attn.attention_drop_rate for block in model.blocks} == {0.2}
    assert model.tokens_to_token.attention1.drop.p == model.tokens_to_token.attention2.mlp[3].p == 0.3


@pytest.mark.parametrize(("images", "error"), [((2, 3, 31, 31), ValueError), ((2, 1, 32, 32), ValueError)])
def test_images_of_another_shape(images: tuple[int, ...], error: type[Exception]) -> None:
    with pytest.raises(error, match=r"images must have shape \[B, 3, 32, 32\], got"):
        small()(torch.randn(images))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"num_heads": 5},
            "embed_dim=256 is not a multiple of num_heads=5; the nearest embed_dim that works: 255 or 260",
        ),
        ({"tokens_type": "convolution"}, "tokens_type must be one of 'performer', 'transformer'; got 'convolution'"),
        ({"img_size": 2}, "img_size must be at least 3, to hold a patch; got 2"),
        ({"patch_stride": 0}, "patch_stride must be at least 1; got 0"),
        ({"patch_padding": -1}, "patch_padding must be at least 0; got -1"),
        ({"token_dim": 1}, "token_dim must be at least 2; got 1"),
        ({"token_drop_rate": 1.0}, "token_drop_rate must be at least 0 and below 1, a probability; got 1.0"),
        ({"drop_path": -0.1}, "drop_path must be at least 0 and below 1, a probability; got -0.1"),
        ({"depth": 0}, "depth must be at least 1; got 0"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps must be above 0, for example 1e-6; got 0.0"),
        ({"mlp_ratio": 0.001}, "mlp_ratio must be at least 0.00390625 (1 / embed_dim); got 0.001"),
    ],
)
def test_fields_that_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as info:
        build_model("t2t_vit_7", **fields)
    assert str(info.value) == message
