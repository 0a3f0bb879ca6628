"""SwAV's head: embeddings, scores, names, and half precision."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from vitfast.errors import UserError
from vitfast.layers import SwavHead


def test_embeddings_and_scores() -> None:
    head, x = SwavHead([6, 5, 4], [7, 3]).eval(), torch.randn(2, 6)
    embeddings, *scores = head(x)
    expected = F.normalize(head.projection_head(x), dim=1)
    torch.testing.assert_close(embeddings, expected)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))
    for score, prototypes in zip(scores, (head.prototypes0, head.prototypes1), strict=True):
        torch.testing.assert_close(score, expected @ prototypes.weight.t())


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({}, "Linear BatchNorm1d ReLU Linear"),
        ({"use_bn": False, "activation": "gelu"}, "Linear GELU Linear"),
        ({"skip_last_bn": False}, "Linear BatchNorm1d ReLU Linear BatchNorm1d ReLU"),
    ],
)
def test_layers_of_the_projection(options: dict[str, Any], layers: str) -> None:
    head = SwavHead([6, 5, 4], [7], **options)
    assert " ".join(type(layer).__name__ for layer in head.projection_head) == layers


def test_returned_values() -> None:
    x = torch.randn(2, 6)
    assert [out.shape for out in SwavHead([6, 4], [])(x)] == [(2, 4)]
    assert [out.shape for out in SwavHead([6, 4], [7], return_embeddings=False)(x)] == [(2, 7)]
    plain = SwavHead([6, 4], [7], normalize_feats=False)
    torch.testing.assert_close(plain(x)[0], plain.projection_head(x))


def test_vissls_names() -> None:
    names = {name for name, _ in SwavHead([6, 5, 4], [7, 3], use_bias=False).named_parameters()}
    assert names == {
        "projection_head.0.weight",
        "projection_head.1.weight",
        "projection_head.1.bias",
        "projection_head.3.weight",
        "prototypes0.weight",
        "prototypes1.weight",
    }


def test_published_size() -> None:
    """The head of vissl's DeiT-B for SwAV: 768, 2048, 128 and 3000 prototypes."""
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in SwavHead([768, 2048, 128], [3000]).parameters())
    assert count == (768 * 2048 + 2048) + 2 * 2048 + (2048 * 128 + 128) + 3000 * 128


def test_weight_norm_begins_with_unit_prototypes() -> None:
    head = SwavHead([6, 4], [7], use_weight_norm_prototypes=True)
    torch.testing.assert_close(head.prototypes0.weight.norm(dim=1), torch.ones(7))
    head(torch.randn(2, 6))[1].square().sum().backward()
    assert [name for name, parameter in head.named_parameters() if parameter.grad is None] == []


def test_weight_norm_loads_vissls_names() -> None:
    head = SwavHead([6, 4], [7], use_weight_norm_prototypes=True)
    lengths, directions = torch.rand(7, 1) + 1, torch.randn(7, 4)
    state = {key: value for key, value in head.state_dict().items() if key.startswith("projection_head")}
    head.load_state_dict({**state, "prototypes0.weight_g": lengths, "prototypes0.weight_v": directions})
    torch.testing.assert_close(head.prototypes0.weight, lengths * F.normalize(directions, dim=1))


@pytest.mark.parametrize("scale", [0.0, 1e-5, 1e4])
def test_half_precision_normalizes_small_and_large_embeddings(scale: float) -> None:
    head = SwavHead([4, 4], [3], use_bias=False).half()
    with torch.no_grad():
        head.projection_head[0].weight.copy_(torch.eye(4))
    embeddings, scores = head(torch.full((1, 4), scale, dtype=torch.float16))
    assert embeddings.dtype == scores.dtype == torch.float16
    expected = torch.full((1, 4), 0.5 if scale else 0.0, dtype=torch.float16)
    torch.testing.assert_close(embeddings, expected, rtol=2e-3, atol=0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dims": [6], "num_clusters": [3]}, "dims must list at least two widths"),
        ({"dims": [6, 4], "num_clusters": [0]}, r"num_clusters must list numbers of at least 1, .*; got \[0\]"),
        ({"dims": [6, 4], "num_clusters": [], "return_embeddings": False}, "leaves nothing to return"),
        (
            {"dims": [6, 4], "num_clusters": [3], "activation": "tanh"},
            "activation must be 'relu' or 'gelu'; got 'tanh'",
        ),
    ],
)
def test_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SwavHead(**arguments)
