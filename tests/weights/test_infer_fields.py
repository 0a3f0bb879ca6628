"""The fields that weights determine."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vitfast
from vitfast.models import ViTFields
from vitfast.weights.infer_fields import infer_fields

NANO = "vit_nano_patch2_8"
INFERRED = (
    "img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "mlp_ratio", "qkv_bias", "patch_order",
    "distillation_token", "head_type", "head_hidden_dim", "class_token", "register_tokens", "prefix_positions",
    "pre_norm", "gated_mlp", "learned_positions", "attention_norm", "mlp_norm",
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
        {"register_tokens": 4, "prefix_positions": False, "gated_mlp": True},
        {"register_tokens": 2, "pre_norm": True},
        {"class_token": False, "pooling": "map"},
        {"key_bias": False, "gated_mlp": True, "mlp_norm": True, "attention_norm": True},
        {"learned_positions": False, "register_tokens": 4},
    ],
)
def test_fields_are_inferred(fields: dict[str, Any]) -> None:
    model = vitfast.create_model(NANO, **fields)
    inferred = infer_fields(ViTFields, model.state_dict())
    names = [name for name in INFERRED if model.pos_embed is not None or name not in ("img_size", "prefix_positions")]
    names += [] if model.fields.key_bias else ["key_bias"]
    assert inferred == {name: getattr(model.fields, name) for name in names}


def test_unknown_fields_are_left_out() -> None:
    state = vitfast.create_model(NANO).state_dict()
    del state["patch_embed.proj.weight"]
    assert "patch_size" not in infer_fields(ViTFields, state)
    assert "img_size" not in infer_fields(ViTFields, state)
    state["pos_embed"] = torch.ones(1, 12, 64)  # 11 patches are no square
    assert "distillation_token" not in infer_fields(ViTFields, state)
    assert infer_fields(ViTFields, {}) == {
        **{"head_type": "linear", "head_hidden_dim": 0, "num_classes": 0},
        **{"class_token": False, "register_tokens": 0, "pre_norm": False, "learned_positions": False},
        **{"attention_norm": False, "mlp_norm": False, "distillation_token": "none"},
    }


def test_misshapen_weights_do_not_crash() -> None:
    state = dict.fromkeys(vitfast.create_model(NANO).state_dict(), torch.tensor(1.0))
    assert infer_fields(ViTFields, state)["depth"] == 4
