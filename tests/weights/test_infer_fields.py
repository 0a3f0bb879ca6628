"""The fields that weights tell, and both layouts of the patch projection."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

import vitfast
from vitfast.models import ViTFields
from vitfast.weights.infer_fields import infer_fields
from vitfast.weights.load_weights import arrange_patches

NANO = "vit_nano_patch2_8"
TOLD = (
    "img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "mlp_ratio", "qkv_bias", "patch_order",
    "distillation_token", "head_type", "head_hidden_dim",
)  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"in_chans": 3, "patch_size": 4, "img_size": 12, "num_classes": 0},
        {"depth": 2, "mlp_ratio": 2.5, "qkv_bias": False, "head_type": "norm_linear"},
        {"patch_order": "channels_last", "distillation_token": "last"},
        {"head_hidden_dim": 7},
        {"patch_order": "channels_last", "in_chans": 3, "distillation_token": "after_class"},
    ],
)
def test_fields_are_told(fields: dict[str, Any]) -> None:
    model = vitfast.create_model(NANO, **fields)
    told = infer_fields(ViTFields, model.state_dict())
    assert told == {name: getattr(model.fields, name) for name in TOLD}


def test_what_cannot_be_told_is_left_out() -> None:
    state = vitfast.create_model(NANO).state_dict()
    del state["patch_embed.proj.weight"]
    assert "patch_size" not in infer_fields(ViTFields, state)
    assert "img_size" not in infer_fields(ViTFields, state)
    state["pos_embed"] = torch.ones(1, 12, 64)  # 11 patches are no square
    assert "distillation_token" not in infer_fields(ViTFields, state)
    assert infer_fields(ViTFields, {}) == {"head_type": "linear", "head_hidden_dim": 0, "num_classes": 0}


def test_misshapen_weights_do_not_crash() -> None:
    state = dict.fromkeys(vitfast.create_model(NANO).state_dict(), torch.tensor(1.0))
    assert infer_fields(ViTFields, state)["depth"] == 4


def test_patch_layouts_compute_the_same() -> None:
    first = ViTFields(img_size=8, patch_size=4, in_chans=3, embed_dim=5, num_heads=1)
    last = ViTFields(img_size=8, patch_size=4, in_chans=3, embed_dim=5, num_heads=1, patch_order="channels_last")
    images, weight = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 4, 4)
    expected = F.conv2d(images, weight, stride=4)[:, :, 1, 0]  # the patch of row 1, column 0
    linear = arrange_patches(weight, last)
    patch = images[:, :, 4:, :4].permute(0, 2, 3, 1).flatten(1)  # [B, P * P * in_chans]
    torch.testing.assert_close(patch @ linear.T, expected)
    assert torch.equal(arrange_patches(linear, first), weight)
    assert arrange_patches(weight, first) is weight
    assert arrange_patches(linear, last) is linear


def test_patches_of_another_size_stay_as_they_are() -> None:
    fields = ViTFields(img_size=8, patch_size=4, in_chans=3, embed_dim=5, num_heads=1)
    weight = torch.ones(5, 75)
    assert arrange_patches(weight, fields) is weight
