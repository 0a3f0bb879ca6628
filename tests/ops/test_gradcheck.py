"""Gradients against finite differences in float64; double backward is an error."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from support.accuracy import as_tuple
from support.operators import OPERATORS, Operator
from support.sample import Make, Sample

# the gradient of rounding is straight-through, not that of the function: test_quantize_float.py has it
DIFFERENTIATED = [operator for operator in OPERATORS if not operator.straight_through]


def _tiny_samples(operator: Operator) -> list[Sample]:
    samples = [sample for sample in operator.samples(Make(torch.float64)) if sample.name.startswith("tiny")]
    assert len(samples) >= 4, f"{operator} needs four samples named tiny…"
    return samples


@pytest.mark.parametrize("operator", DIFFERENTIATED, ids=str)
def test_gradients_equal_finite_differences(operator: Operator) -> None:
    for sample in _tiny_samples(operator):
        leaves = sample.requires_grad()
        names = list(leaves.tensors)

        def function(*tensors: Tensor, names: list[str] = names, sample: Sample = leaves) -> tuple[Tensor, ...]:
            return as_tuple(operator.public(**sample.replace(**dict(zip(names, tensors, strict=True))).arguments))

        torch.autograd.gradcheck(function, tuple(leaves.tensors.values()), eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("operator", DIFFERENTIATED, ids=str)
def test_a_second_derivative_is_a_clear_error_or_right(operator: Operator) -> None:
    leaves = _tiny_samples(operator)[0].requires_grad()
    tensors = list(leaves.tensors.values())
    loss = sum(out.square().sum() for out in as_tuple(operator.public(**leaves.arguments)))
    gradients = torch.autograd.grad(loss, tensors, create_graph=True)
    penalty = sum(gradient.square().sum() for gradient in gradients)
    try:
        second_derivatives = torch.autograd.grad(penalty, tensors)
    except NotImplementedError as error:
        assert re.search(r"vitfast\.ops\.\w+ has no second derivative", str(error))  # noqa: PT017 - or it is right
        return
    except RuntimeError as error:
        assert "not implemented" in str(error)  # noqa: PT017 - torch's own operator may refuse or may know
        return
    plain_loss = sum(out.square().sum() for out in as_tuple(operator.plain(**leaves.arguments)))
    plain_gradients = torch.autograd.grad(plain_loss, tensors, create_graph=True)
    expected = torch.autograd.grad(sum(gradient.square().sum() for gradient in plain_gradients), tensors)
    torch.testing.assert_close(second_derivatives, expected)
