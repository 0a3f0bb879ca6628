"""Wrong arguments: TypeError or ValueError that names the argument, what was given and what is allowed."""

from __future__ import annotations

import pytest
import torch

from support.invalid import assert_refused, invalid_calls
from support.operators import OPERATORS, Operator
from support.sample import Make
from vitfast import ops


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_invalid_calls_are_refused_by_name(operator: Operator) -> None:
    for sample in operator.samples(Make()):
        if sample.numel > 60_000:
            continue
        for argument, what, call in invalid_calls(operator, sample):
            assert_refused(operator, argument, what, call)


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_a_wrong_kind_of_argument_is_a_type_error(operator: Operator) -> None:
    sample = operator.samples(Make())[0]
    for argument, what, call in invalid_calls(operator, sample):
        if what in ("a list", "a numpy array", "int32", "bool", "complex", "sparse", "another float type"):
            with pytest.raises(TypeError, match=rf"\b{argument}\b"):
                operator.public(**call.arguments)


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_a_missing_tensor_is_a_type_error(operator: Operator) -> None:
    sample = operator.samples(Make())[0]
    first = next(iter(sample.tensors))
    with pytest.raises(TypeError, match=rf"\b{first}\b"):
        operator.public(**sample.replace(**{first: None}).arguments)


def test_messages_name_the_given_and_the_allowed_values() -> None:
    x = torch.randn(2, 4)
    with pytest.raises(ValueError, match=r"weight must have shape \[4\].*got \[5\]"):
        ops.layer_norm(x, torch.ones(5))
    with pytest.raises(TypeError, match=r"float32.*float64.*got torch\.int64"):
        ops.layer_norm(torch.ones(2, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"none, tanh.*got 'relu'"):
        ops.mlp(x, torch.ones(8, 4), None, torch.ones(4, 8), None, approximate="relu")
