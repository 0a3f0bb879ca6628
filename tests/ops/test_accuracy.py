"""Every operator, forward and backward, in every dtype and memory layout, by the tolerance rule."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from support.accuracy import as_tuple, assert_accurate, assert_same_bits, cancelled_magnitude, cotangents, run
from support.operators import FLOATS, OPERATORS, Operator
from support.sample import Make
from support.shapes import ALL_LAYOUTS, LAYOUTS
from support.slow import slow
from vitfast.ops.tolerance import BACKWARD_FACTOR, assert_as_accurate


def _cases() -> Iterator[object]:
    for operator in OPERATORS:
        for index, sample in enumerate(operator.samples(Make())):
            yield pytest.param(operator, index, id=f"{operator.name}-{sample.name}")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("operator", "index"), list(_cases()))
def test_forward_and_backward_are_as_accurate_as_torch(operator: Operator, index: int, dtype: torch.dtype) -> None:
    assert_accurate(operator, operator.samples(Make(dtype))[index])


# strides are handled before the kernel of a type is chosen
@pytest.mark.parametrize("dtype", [torch.float32, *slow([torch.bfloat16])], ids=str)
@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_any_memory_layout_of_any_argument(operator: Operator, dtype: torch.dtype) -> None:
    for sample in operator.samples(Make(dtype)):
        if sample.numel > 60_000:
            continue
        layouts = []
        for layout in LAYOUTS:
            changed = {name: operator.in_layout(tensor, layout) for name, tensor in sample.tensors.items()}
            layouts.append(sample.replace(**changed))
            layouts += [sample.replace(**{name: tensor}) for name, tensor in changed.items()]
        assert_accurate(operator, sample, *layouts)


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_expanded_argument_equals_its_copy(operator: Operator) -> None:
    for sample in operator.samples(Make()):
        if sample.numel > 60_000:
            continue
        for name, tensor in sample.tensors.items():
            expanded = operator.in_layout(tensor, "expanded")
            results, gradients = run(operator.public, sample.replace(**{name: expanded}))
            of_copy, gradients_of_copy = run(operator.public, sample.replace(**{name: expanded.contiguous()}))
            torch.testing.assert_close(results, of_copy)
            torch.testing.assert_close(gradients, gradients_of_copy)


@pytest.mark.parametrize("layout", ALL_LAYOUTS)
@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_any_memory_layout_of_the_incoming_gradient(operator: Operator, layout: str) -> None:
    for sample in operator.samples(Make()):
        if sample.numel > 60_000:
            continue
        grads = tuple(
            operator.in_layout(grad, layout) for grad in cotangents(as_tuple(operator.public(**sample.arguments)))
        )
        _, gradients = run(operator.public, sample, grads)
        _, expected = run(operator.public, sample, tuple(grad.contiguous() for grad in grads))
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], msg=lambda m, s=sample, n=name: f"{s}\n{n}: {m}")


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_inputs_are_left_alone_and_outputs_are_new(operator: Operator) -> None:
    for sample in operator.samples(Make()):
        before = {name: tensor.clone() for name, tensor in sample.tensors.items()}
        outputs, gradients = run(operator.public, sample)
        for name, tensor in sample.tensors.items():
            assert_same_bits(tensor, before[name], name)
        storages = [
            tensor.untyped_storage().data_ptr() for tensor in (*outputs, *sample.tensors.values()) if tensor.numel()
        ]
        assert len(set(storages)) == len(storages), f"{sample}: an output shares memory with an argument or output"
        for name, gradient in gradients.items():
            assert gradient.shape == sample.tensors[name].shape


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_one_argument_alone_gets_the_gradient_that_it_gets_among_others(operator: Operator) -> None:
    for sample in operator.samples(Make()):
        outputs, all_gradients = run(operator.public, sample)
        if sample.numel > 60_000:
            continue
        for name in sample.tensors:
            leaf = sample.tensors[name].clone().requires_grad_()
            alone = as_tuple(operator.public(**sample.replace(**{name: leaf}).arguments))
            used = [(out, grad) for out, grad in zip(alone, cotangents(outputs), strict=True) if out.requires_grad]
            (gradient,) = torch.autograd.grad([out for out, _ in used], leaf, [grad for _, grad in used])
            # torch's attention takes another path where bias needs no gradient: equal but for its rounding
            largest = max(all_gradients[name].abs().max().item(), 1.0) if gradient.numel() else 1.0
            torch.testing.assert_close(
                gradient,
                all_gradients[name],
                atol=1e-5 * largest,
                rtol=1e-5,
                msg=lambda m, s=sample, n=name: f"{s}\ngradient of {n} alone: {m}",
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_gradients_through_each_output_alone(operator: Operator, dtype: torch.dtype) -> None:
    for sample in operator.samples(Make(dtype)):
        for index in range(len(as_tuple(operator.public(**sample.arguments)))):
            results = []
            for function, call in (
                (operator.public, sample),
                (operator.plain, sample),
                (operator.plain, sample.to(torch.float64)),
            ):
                leaves = call.requires_grad()
                output = as_tuple(function(**leaves.arguments))[index]
                grad = cotangents((output,))[0].to(dtype).to(output.dtype)
                tensors = list(leaves.tensors.values())
                gradients = torch.autograd.grad(output, tensors, grad, allow_unused=True)
                pairs = zip(gradients, tensors, strict=True)
                results.append([torch.zeros_like(tensor) if g is None else g for g, tensor in pairs])
            for name, *triple in zip(sample.tensors, *results, strict=True):
                if operator.exact:
                    assert_same_bits(triple[0], triple[1])
                    continue
                assert_as_accurate(
                    *triple,
                    factor=BACKWARD_FACTOR,
                    name=f"{sample} gradient of {name} through output {index}",
                    magnitude=cancelled_magnitude(sample, results[2]),
                )
