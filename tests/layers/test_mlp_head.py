"""The layers of the head ``mlp``, and their names."""

from typing import Any

import pytest
import torch
from torch import nn

from vitfast.errors import UserError
from vitfast.layers import MlpHead

ALL = {"use_bn": True, "use_relu": True, "use_dropout": True}


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({}, "Linear Linear"),
        ({"use_relu": True}, "Linear ReLU Linear"),
        (ALL, "Linear BatchNorm1d ReLU Dropout Linear"),
        (
            {**ALL, "skip_last_layer_relu_bn": False},
            "Linear BatchNorm1d ReLU Dropout Linear BatchNorm1d ReLU Dropout",
        ),
    ],
)
def test_layers(options: dict[str, Any], layers: str) -> None:
    head = MlpHead([6, 4, 3], **options)
    assert " ".join(type(layer).__name__ for layer in head.clf) == layers


def test_two_widths_are_a_linear_head() -> None:
    head, x = MlpHead([6, 3], **ALL), torch.randn(5, 6)
    assert head.state_dict().keys() == {"clf.0.weight", "clf.0.bias"}
    torch.testing.assert_close(head(x), nn.functional.linear(x, head.clf[0].weight, head.clf[0].bias))


def test_vissls_names() -> None:
    assert dict(MlpHead([6, 4, 3], use_bn=True, use_bias=False).named_parameters()).keys() == {
        "clf.0.weight",
        "clf.1.weight",
        "clf.1.bias",
        "clf.2.weight",
    }


def test_forward() -> None:
    head, x = MlpHead([6, 4, 3], use_bn=True, use_relu=True).train(), torch.randn(5, 6)
    hidden = head.clf[0](x)
    normalized = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(head(x), head.clf[3](normalized.relu()))


@pytest.mark.parametrize("dims", [[], [6], [6, 0]])
def test_refused(dims: list[int]) -> None:
    with pytest.raises(UserError, match=r"dims must list at least two widths .*for example \[768, 1000\]; got \["):
        MlpHead(dims)
