"""Mutation tests of the comparison: operators with typical kernel errors must be rejected."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from support import plain
from support.accuracy import assert_accurate
from support.operators import OPERATORS
from support.sample import Make


def _attention_without_the_last_key(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
    mask = torch.zeros(1, q.shape[1], q.shape[2], q.shape[2], dtype=q.dtype)
    mask[..., -1:] = -1e4 if q.shape[2] > 1 else 0
    bias = options.pop("bias", None)
    return plain.attention(q, k, v, bias=mask if bias is None else bias + mask, **options)


def _attention_with_a_wrong_scale(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, **options: Any
) -> Any:
    return plain.attention(q, k, v, scale=(q.shape[-1] ** -0.5 if scale is None else scale) * 1.01, **options)


def _attention_with_detached_logits(*tensors: Tensor, return_logits: bool = False, **options: Any) -> Any:
    out, logits = plain.attention(*tensors, return_logits=True, **options)
    return (out, logits.detach() + 0 * logits) if return_logits else (out,)


def _attention_without_the_gradient_of_bias(*tensors: Tensor, bias: Tensor | None = None, **options: Any) -> Any:
    return plain.attention(*tensors, bias=None if bias is None else bias.detach() + 0 * bias, **options)


def _layer_norm_with_unbiased_variance(x: Tensor, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    channels = x.shape[-1]
    return plain.layer_norm(x * (1 - 1 / channels) ** 0.5, weight, bias, eps) * (1 - 1 / channels) ** 0.5


def _layer_norm_with_another_eps(x: Tensor, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    return plain.layer_norm(x, weight, bias, eps * 10)


def _add_layer_norm_without_the_gradient_of_the_sum(x: Tensor, residual: Tensor, *rest: Any, **options: Any) -> Any:
    summed, normalized = plain.add_layer_norm(x, residual, *rest, **options)
    return summed.detach() + 0 * summed, normalized


def _mlp_with_the_other_gelu(*tensors: Any, approximate: str = "none", **options: Any) -> Any:
    return plain.mlp(*tensors, approximate="tanh" if approximate == "none" else "none", **options)


def _mlp_without_residual(*tensors: Any, residual: Tensor | None = None, **options: Any) -> Any:
    return plain.mlp(*tensors, residual=None if residual is None else 0 * residual, **options)


def _rounding_ties_away(x: Tensor, format: Any, *, rounding: str = "nearest_even", **options: Any) -> Tensor:
    return plain.quantize_float(
        x, format, rounding="nearest_away" if rounding == "nearest_even" else rounding, **options
    )


def _rounding_without_the_gradient(x: Tensor, format: Any, **options: Any) -> Tensor:
    return plain.quantize_float(x.detach(), format, **options) + 0 * x


def _fixed_point_that_wraps(x: Tensor, *lengths: int, overflow: str = "saturate", **options: Any) -> Tensor:
    return plain.quantize_fixed(x, *lengths, overflow="wrap" if overflow == "saturate" else overflow, **options)


def _accumulating_without_chunks(x: Tensor, *rest: Any, chunk: int | None = None, **options: Any) -> Tensor:
    return plain.matmul_accumulate(x, *rest, chunk=None, **options)


def _upsampling_transposed(x: Tensor, matrix: Tensor) -> Tensor:
    return plain.upsample_relations(x.mT, matrix)


MUTATIONS: list[tuple[str, Callable[..., Any]]] = [
    ("attention", _attention_without_the_last_key),
    ("attention", _attention_with_a_wrong_scale),
    ("attention", _attention_with_detached_logits),
    ("attention", _attention_without_the_gradient_of_bias),
    ("layer_norm", _layer_norm_with_unbiased_variance),
    ("layer_norm", _layer_norm_with_another_eps),
    ("add_layer_norm", _add_layer_norm_without_the_gradient_of_the_sum),
    ("mlp", _mlp_with_the_other_gelu),
    ("mlp", _mlp_without_residual),
    ("quantize_float", _rounding_ties_away),
    ("quantize_float", _rounding_without_the_gradient),
    ("quantize_fixed", _fixed_point_that_wraps),
    ("matmul_accumulate", _accumulating_without_chunks),
    ("upsample_relations", _upsampling_transposed),
]


@pytest.mark.parametrize(("name", "mutation"), MUTATIONS, ids=lambda value: getattr(value, "__name__", value))
def test_a_broken_operator_is_caught(name: str, mutation: Callable[..., Any]) -> None:
    operator = next(operator for operator in OPERATORS if operator.name == name)

    def positional(**arguments: Any) -> Any:
        tensors = [arguments.pop(key) for key in list(arguments) if key in ("q", "k", "v") or key.startswith("fc")]
        leading = [arguments.pop("x")] if "x" in arguments else []
        return mutation(*leading, *tensors, **arguments)

    broken = dataclasses.replace(operator, public=positional)
    intact = dataclasses.replace(operator, public=operator.plain)
    samples = [sample for sample in operator.samples(Make()) if 0 < sample.numel < 60_000]
    caught = 0
    for sample in samples:
        assert_accurate(intact, sample)
        try:
            assert_accurate(broken, sample)
        except AssertionError:
            caught += 1
    assert caught > 0, f"{mutation.__name__} passes all of {len(samples)} samples"
