"""The same call gives the same bits: again, on more threads, and for an image alone or in a batch.

The last two are guarantees of vitfast's own kernels (``attention``, ``layer_norm``, ``quantize_float``); torch's
products, which ``mlp`` and pure PyTorch use, may be split otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from support.accuracy import as_tuple, assert_same_bits, run
from support.operators import FLOATS, OPERATORS, Operator
from support.sample import Make, Sample

REPEATS = 25


@pytest.fixture
def _threads_restored() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def _skip_unless_deterministic(operator: Operator) -> None:
    if not operator.is_compiled or operator.uses_torch_gemm:
        pytest.skip(f"torch's GEMMs are not batch-invariant: {operator.name}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("operator", OPERATORS, ids=str)
@pytest.mark.usefixtures("_threads_restored")
def test_repeats_are_bitwise_equal(operator: Operator, dtype: torch.dtype) -> None:
    torch.set_num_threads(2)
    candidates = [sample for sample in operator.samples(Make(dtype)) if sample.numel < 25_000]
    sample = max(candidates, key=lambda candidate: candidate.numel)
    outputs, gradients = run(operator.public, sample)
    for _ in range(REPEATS - 1):
        again, gradients_again = run(operator.public, sample)
        assert all(torch.equal(a, b) for a, b in zip(outputs, again, strict=True)), str(sample)
        assert all(torch.equal(gradients[name], gradients_again[name]) for name in gradients), str(sample)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("operator", OPERATORS, ids=str)
@pytest.mark.usefixtures("_threads_restored")
def test_one_and_two_threads_are_bitwise_equal(operator: Operator, dtype: torch.dtype) -> None:
    _skip_unless_deterministic(operator)
    for sample in operator.samples(Make(dtype)):
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            outputs, gradients = run(operator.public, sample)
            results.append([*outputs, *gradients.values()])
        for one, two in zip(*results, strict=True):
            assert_same_bits(two, one, str(sample))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_result_does_not_depend_on_the_batch(operator: Operator, dtype: torch.dtype) -> None:
    _skip_unless_deterministic(operator)
    for sample in operator.samples(Make(dtype)):
        first = sample.tensors[operator.batched[0]]
        batch = len(first) if first.dim() >= 2 else 0
        together = as_tuple(operator.public(**sample.arguments))
        for index in range(min(batch, 3)):
            alone = as_tuple(operator.public(**_one_of_the_batch(operator, sample, batch, index).arguments))
            for out, expected in zip(alone, together, strict=True):
                assert_same_bits(out, expected[index : index + 1], str(sample))


def _one_of_the_batch(operator: Operator, sample: Sample, batch: int, index: int) -> Sample:
    """The call on one image; with attention's bias unless it is shared."""
    bias = sample.tensors.get("bias")
    has_batch = (
        [*operator.batched, "bias"] if bias is not None and bias.dim() == 4 and len(bias) == batch else operator.batched
    )
    return sample.replace(**{name: sample.tensors[name][index : index + 1] for name in has_batch})
