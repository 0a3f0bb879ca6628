"""Layout conversions against their definitions, element by element, and keys that do not match a table."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from vitfast.errors import UserError
from vitfast.weights.key_tables import KEY_TABLES
from vitfast.weights.key_tables.google import from_hwio, heads_bias, into_heads, out_of_heads, transposed
from vitfast.weights.key_tables.key_table import KeyTable, Rule, affine, map_keys, stacked_affine

C, H, D = 6, 2, 3


def test_dense_kernel() -> None:
    """Flax computes ``x @ kernel``, torch ``x @ weight.T``."""
    kernel, x = torch.randn(4, 5), torch.randn(2, 4)
    torch.testing.assert_close(torch.nn.functional.linear(x, transposed(kernel)), x @ kernel)


def test_convolution_kernel() -> None:
    kernel = torch.randn(2, 3, 4, 5)  # height, width, in, out
    for y, x, i, o in ((0, 0, 0, 0), (1, 2, 3, 4), (0, 2, 1, 3)):
        assert from_hwio(kernel)[o, i, y, x] == kernel[y, x, i, o]


def test_projection_into_heads() -> None:
    kernel, bias, x = torch.randn(C, H, D), torch.randn(H, D), torch.randn(4, C)
    expected = torch.einsum("nc,chd->nhd", x, kernel) + bias
    ours = torch.nn.functional.linear(x, into_heads(kernel), heads_bias(bias)).unflatten(-1, (H, D))
    torch.testing.assert_close(ours, expected)


def test_projection_out_of_heads() -> None:
    kernel, x = torch.randn(H, D, C), torch.randn(4, H, D)
    ours = torch.nn.functional.linear(x.flatten(1), out_of_heads(kernel))
    torch.testing.assert_close(ours, torch.einsum("nhd,hdc->nc", x, kernel))


def test_stacked_in_the_order_of_the_table_not_of_the_file() -> None:
    rules = stacked_affine(["q", "k", "v"], "qkv")
    tensors = {f"{name}.weight": torch.full((1, 2), float(value)) for name, value in (("v", 3), ("q", 1), ("k", 2))}
    mapped, unmatched = map_keys(tensors, rules, "file")
    assert mapped["qkv.weight"].tolist() == [[1, 1], [2, 2], [3, 3]]
    assert (list(mapped), unmatched) == (["qkv.weight"], [])


def test_an_incomplete_stack_is_not_loaded() -> None:
    rules = (*stacked_affine(["q", "k", "v"], "qkv"), *affine("norm", "norm"))
    tensors = {key: torch.ones(1) for key in ("other", "q.bias", "v.bias", "norm.bias")}
    mapped, unmatched = map_keys(tensors, rules, "file")
    assert list(mapped) == ["norm.bias"]
    assert mapped["norm.bias"] is tensors["norm.bias"]  # a layout that is kept needs no second copy
    assert sorted(unmatched) == ["other", "q.bias", "v.bias"]


def test_whole_keys_and_the_first_rule() -> None:
    rules = (Rule(r"a\.(\d)", r"x.\1"), Rule(r"a\.(.+)", r"y.\1"))
    mapped, unmatched = map_keys({key: torch.ones(1) for key in ("a.1", "a.12", "b.a.1")}, rules, "file")
    assert (sorted(mapped), unmatched) == (["x.1", "y.12"], ["b.a.1"])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"kernel": torch.ones(3)}, r"^file: kernel has shape \[3\], which does not fit its layer; use another file$"),
        ({"a": torch.ones(1), "b": torch.ones(1)}, "^file holds same twice, as a and as b; remove one of them$"),
        (
            {"q.weight": torch.ones(1, 2), "k.weight": torch.ones(1, 3)},
            r"^file: tensors of one layer have different shapes: q.weight \[1, 2\], k.weight \[1, 3\]; use another",
        ),
    ],
)
def test_errors(tensors: dict[str, Tensor], message: str) -> None:
    rules = (Rule("kernel", "weight", transposed), Rule("a|b", "same"), *stacked_affine(["q", "k"], "qk"))
    with pytest.raises(UserError, match=message):
        map_keys(tensors, rules, "file")


@pytest.mark.parametrize("table", KEY_TABLES, ids=lambda table: table.name)
def test_every_pattern_of_the_tables_compiles_and_its_groups_are_used(table: KeyTable) -> None:
    for rule in table.rules:
        if not isinstance(rule.key, str):  # a function of the whole key
            assert re.compile(rule.pattern).groups == 0
            continue
        used = set(map(int, re.findall(r"\\(\d)", rule.key)))
        assert used == set(range(1, re.compile(rule.pattern).groups + 1)), rule
    for pattern in (*table.signature, *table.ignored, *table.extra_head_layers, *(row[0] for row in table.unsupported)):
        re.compile(pattern)
