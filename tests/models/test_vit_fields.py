"""Fields: what is refused, and that the message shows the fix."""

from typing import Any

import pytest

from vitfast.errors import UserError
from vitfast.models import ViTFields


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"img_size": 225},
            "img_size=225 is not a multiple of patch_size=16; the nearest img_size that works: 224 or 240",
        ),
        ({"img_size": 384, "patch_size": 14}, "img_size=384 is not a multiple of patch_size=14; .*: 378 or 392"),
        ({"img_size": 3}, "img_size=3 is not a multiple of patch_size=16; the nearest img_size that works: 16$"),
        (
            {"num_heads": 7},
            "embed_dim=768 is not a multiple of num_heads=7; the nearest embed_dim .*: 763 or 770",
        ),
        ({"embed_dim": 3}, "embed_dim=3 is not a multiple of num_heads=12; the nearest embed_dim that works: 12$"),
        ({"depth": 0}, "depth must be at least 1; got 0"),
        ({"in_chans": -1}, "in_chans must be at least 1; got -1"),
        ({"num_classes": -1}, "num_classes must be at least 1, or 0 for no head; got -1"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps must be above 0, for example 1e-6; got 0.0"),
        ({"mlp_ratio": 0.001}, r"mlp_ratio must be at least 0.0013\d+ \(1 / embed_dim\); got 0.001"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio must be a finite number; got nan"),
        ({"drop_rate": 1.0}, "drop_rate must be at least 0 and below 1, a probability; got 1.0"),
        ({"attention_drop_rate": -0.1}, "attention_drop_rate must be at least 0 and below 1"),
        ({"drop_path": 2}, "drop_path must be at least 0 and below 1"),
        ({"gelu": "relu"}, "gelu must be one of 'erf', 'tanh'; got 'relu'"),
        ({"patch_order": None}, "patch_order must be one of 'channels_first', 'channels_last'; got None"),
        ({"pooling": "max"}, "pooling must be one of 'token', 'mean'; got 'max'"),
        ({"head_type": "mlp"}, "head_type must be one of 'linear', 'norm_linear'; got 'mlp'"),
        ({"distillation_token": True}, "distillation_token must be one of 'none', 'after_class', 'last'; got True"),
        ({"position_interpolation": "nearest"}, "must be one of 'zoom_linear', 'bicubic', 'bicubic_aligned'"),
        ({"depth": 12.0}, "depth must be a whole number; got 12.0"),
        ({"depth": True}, "depth must be a whole number; got True"),
        ({"img_size": "224"}, "img_size must be a whole number; got '224'"),
        ({"qkv_bias": 1}, "qkv_bias must be True or False; got 1"),
        ({"drop_rate": "0.1"}, "drop_rate must be a finite number; got '0.1'"),
        ({"pooling": "mean", "distillation_token": "after_class"}, "use pooling='token'"),
        ({"head_hidden_dim": -1}, "head_hidden_dim must be at least 1, or 0 for none; got -1"),
        (
            {"head_hidden_dim": 8, "distillation_token": "last"},
            "head_hidden_dim=8 cannot be combined with distillation_token='last'",
        ),
    ],
)
def test_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ViTFields(**fields)


def test_derived_sizes() -> None:
    fields = ViTFields(img_size=384, patch_size=32, embed_dim=192, num_heads=3, mlp_ratio=2.5)
    assert (fields.grid_size, fields.mlp_dim, fields.num_prefix_positions) == (12, 480, 1)
    assert ViTFields(distillation_token="after_class").num_prefix_positions == 2
    assert ViTFields(distillation_token="last").num_prefix_positions == 1


def test_frozen() -> None:
    with pytest.raises(AttributeError):
        ViTFields().depth = 3  # type: ignore[misc]
