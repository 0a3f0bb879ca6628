"""Invalid calls derived from a valid one, for all operators."""

from __future__ import annotations

import re

import pytest
import torch

from support.operators import Operator
from support.sample import Sample


def invalid_calls(operator: Operator, sample: Sample) -> list[tuple[str, str, Sample]]:
    """Returns (argument that the error must name, what is wrong with it, the call)."""
    calls = [(argument, "shape or option", call) for argument, call in operator.misshape(sample)]
    dtypes = {tensor.dtype for tensor in sample.tensors.values()}
    for name, tensor in sample.tensors.items():
        replacements = {
            "a list": tensor.tolist(),
            "a numpy array": tensor.double().numpy(),
            "int32": tensor.to(torch.int32),
            "bool": tensor.to(torch.bool),
            "complex": tensor.to(torch.complex64),
            "sparse": tensor.to_sparse(),
        }
        if len(sample.tensors) > 1:
            replacements["another device"] = tensor.to("meta")
        if len(sample.tensors) > 1 and name not in operator.promoted:
            replacements["another float type"] = tensor.to(torch.float32 if torch.float64 in dtypes else torch.float64)
        calls += [(name, what, sample.replace(**{name: value})) for what, value in replacements.items()]
    return calls


def assert_refused(operator: Operator, argument: str, what: str, call: Sample) -> None:
    """Asserts that the call raises TypeError or ValueError with the argument's name in the message."""
    with pytest.raises((TypeError, ValueError)) as caught:
        operator.public(**call.arguments)
    message = str(caught.value)
    assert re.search(rf"\b{argument}\b", message), f"{call}: {argument} ({what}) is not named in: {message}"
