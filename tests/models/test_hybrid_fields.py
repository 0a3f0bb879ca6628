"""Fields of hybrids: what is refused, and that the message shows the fix."""

import json
from dataclasses import asdict
from typing import Any

import pytest

from vitfast.errors import UserError
from vitfast.models import HybridFields


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
def test_refused(fields: dict[str, Any], message: str) -> None:
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
