"""Multiply-adds of the exits against published values and a count by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from support.exit_models import exit_model
from support.slow import slow
from vitfast import UserError
from vitfast.inference.early_exit import exit_gmacs
from vitfast.models import build_model


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dvt_t2t_vit_12", ["0.468", "1.446", "3.455"]),
        *slow([("dvt_t2t_vit_14", ["1.20", "3.82", "9.26"])]),
    ],
)
def test_published_models(name: str, expected: list[str]) -> None:
    with torch.device("meta"):
        model = build_model(name)
    costs = exit_gmacs(model.to_empty(device="cpu"))  # the weights' values do not matter
    assert [f"{cost:.{len(text) - 2}f}" for cost, text in zip(costs, expected, strict=True)] == expected


def test_by_hand() -> None:
    """One block of width 8 and one head on 2 x 2, then on 4 x 4 tokens."""
    fields = {"num_classes": 3, "embed_dim": 8, "depth": 1, "num_heads": 1, "mlp_ratio": 2.0}
    plain = build_model("dvt_nano_16", **fields, feature_reuse=False, relation_reuse=False)

    def transformer(patches: int, patch: int) -> int:
        tokens = patches + 1
        return patches * patch**2 * 8 + tokens * (3 + 1 + 2 + 2) * 8 * 8 + 2 * tokens**2 * 8 + 8 * 3

    first, second = transformer(4, 8), transformer(16, 4)
    assert exit_gmacs(plain) == pytest.approx([first * 1e-9, (first + second) * 1e-9])
    reusing = build_model("dvt_nano_16", **fields, reuse_dim=5, reuse_hidden_dim=7)
    features = 5 * (8 * 7 + 7 * 5) + 17 * 5 * 16  # of the first exit's 5 tokens; 5 channels more into the MLP
    relations = 25 * (1 * 3 + 3 * 1)
    costs = exit_gmacs(reusing)
    assert costs == pytest.approx([first * 1e-9, (first + second + features + relations) * 1e-9])


def test_nothing_is_computed_or_changed() -> None:
    model = exit_model("t2t").train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    costs = exit_gmacs(model)
    assert model.training
    assert all(type(value) in (torch.Tensor, nn.Parameter) for value in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert costs == exit_gmacs(model.double())
    assert 0 < costs[0] < costs[1] < costs[2]


def test_a_model_without_exits() -> None:
    with pytest.raises(UserError, match="vit_nano_patch2_8 has no exits"):
        exit_gmacs(build_model("vit_nano_patch2_8"))
