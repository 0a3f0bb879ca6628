"""Runs an operator forward and backward and compares it with plain PyTorch and float64 by the tolerance rule."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from support.sample import Sample
from vitfast.ops.tolerance import BACKWARD_FACTOR, FORWARD_FACTOR, assert_as_accurate

if TYPE_CHECKING:
    from support.operators import Operator


def as_tuple(result: Any) -> tuple[Tensor, ...]:
    """An operator's result, whether it is one tensor or several."""
    return result if isinstance(result, tuple) else (result,)


def cotangents(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Reproducible gradients to feed back, one per output, the same numbers for every dtype."""
    generator = torch.Generator().manual_seed(len(outputs))
    return tuple(torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype) for out in outputs)


def run(
    function: Callable[..., Any], sample: Sample, grads: tuple[Tensor, ...] | None = None
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Runs forward and backward.

    Args:
        function: the operator; called with the sample's arguments.
        sample: the call; gradients are taken with respect to its tensors, in their memory layout.
        grads: the gradients of the outputs; None takes ``cotangents``.

    Returns:
        The outputs and, by argument name, the gradients.
    """
    leaves = sample.requires_grad()
    outputs = as_tuple(function(**leaves.arguments))
    grads = cotangents(outputs) if grads is None else tuple(g.to(o.dtype) for g, o in zip(grads, outputs, strict=True))
    names = list(leaves.tensors)
    gradients = torch.autograd.grad(outputs, [leaves.tensors[name] for name in names], grads)
    return tuple(out.detach() for out in outputs), dict(zip(names, gradients, strict=True))


def assert_rounded_alike(actual: Tensor, expected: Tensor, eps: float, smallest_normal: float, noise: Tensor) -> None:
    """Asserts that two results are roundings of float32 numbers that differ by ``noise`` or less.

    They differ by ``noise`` and one spacing of their format at most, and fewer than 0.2 % of them differ at all.

    Args:
        actual: the result to judge.
        expected: what it must agree with; same shape.
        eps: the spacing of the format at one.
        smallest_normal: the smallest normal number of the format.
        noise: the difference before rounding, per element.
    """
    difference = (actual.double() - expected.double()).abs()
    allowed = eps * expected.double().abs().clamp(min=smallest_normal) + noise
    worst = int((difference - allowed).argmax())
    assert (difference <= allowed).all(), (
        f"element {worst}: {actual.flatten()[worst]}, not {expected.flatten()[worst]}; "
        f"they differ by {difference.flatten()[worst]}, allowed {allowed.flatten()[worst]}"
    )
    share = (difference != 0).double().mean()
    assert share < 0.002, f"{share:.2%} differ"


def layer_norm_noise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """How far two float32 LayerNorms of ``x`` may differ, per element: a few roundings of statistics and terms."""
    normalized = torch.nn.functional.layer_norm(x.double(), x.shape[-1:]).abs()
    return 2.0**-20 * ((normalized + 1) * weight.abs() + bias.abs())


def assert_accurate(operator: Operator, sample: Sample, *layouts: Sample) -> None:
    """Compares the operator's outputs and gradients on this sample with torch's, by the tolerance rule.

    An operator that is ``exact`` must be bit-exact with its PyTorch equivalent instead.

    Args:
        operator: what is tested.
        sample: a call.
        layouts: the same call with other memory layouts of its tensors, which must be as accurate.
    """
    outputs, gradients = run(operator.public, sample)
    # torch may use its preferred strides: only the values matter
    plain_outputs, plain_gradients = run(operator.plain, sample.map(Tensor.contiguous), cotangents(outputs))
    assert len(outputs) == len(plain_outputs), f"{len(outputs)} outputs, not {len(plain_outputs)}"
    exact_outputs, exact_gradients = plain_outputs, plain_gradients
    if not operator.exact:
        exact_outputs, exact_gradients = run(operator.plain, sample.to(torch.float64), cotangents(outputs))
        if outputs[0].dtype == torch.float64:
            plain_outputs, plain_gradients = _float64_yardstick(operator, sample, exact_outputs, exact_gradients)
    results = [(sample, outputs, gradients)]
    results += [(layout, *run(operator.public, layout)) for layout in layouts]
    for call, outputs, gradients in results:
        with _naming(call):
            if operator.exact:
                for out, plain in zip(outputs, plain_outputs, strict=True):
                    assert_same_bits(out, plain)
                for name, gradient in gradients.items():
                    assert_same_bits(gradient, plain_gradients[name], f"gradient of {name}")
                continue
            for index, triple in enumerate(zip(outputs, plain_outputs, exact_outputs, strict=True)):
                assert_as_accurate(
                    *triple,
                    factor=FORWARD_FACTOR,
                    name=f"{operator.name} output {index}",
                    magnitude=_residual_magnitude(sample),
                )
            for name, gradient in gradients.items():
                assert_as_accurate(
                    gradient,
                    plain_gradients[name],
                    exact_gradients[name],
                    factor=BACKWARD_FACTOR,
                    name=f"{operator.name} gradient of {name}",
                    magnitude=cancelled_magnitude(sample, exact_gradients.values()),
                )


def _residual_magnitude(sample: Sample) -> float:
    """The size of what cancels in a result that is a residual plus something of about its size."""
    residual = sample.tensors.get("residual")
    return residual.abs().max().item() if residual is not None and residual.numel() else 0.0


def cancelled_magnitude(sample: Sample, exact_gradients: Iterable[Tensor]) -> float:
    """The magnitude of the terms that cancel in a vanishing gradient, each as large as the other gradients."""
    largest = max((gradient.abs().max().item() for gradient in exact_gradients if gradient.numel()), default=0.0)
    return largest * sample.cancelling_terms


def _float64_yardstick(
    operator: Operator, sample: Sample, exact_outputs: tuple[Tensor, ...], exact_gradients: dict[str, Tensor]
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Torch has no result more exact than float64: its error is assumed to be float32's, scaled by eps.

    Twice that, because the float64 reference has the same error as the tested result.
    """
    scale = 2 * torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    rounded = sample.to(torch.float32)
    outputs, gradients = run(operator.plain, rounded)
    wide_outputs, wide_gradients = run(operator.plain, rounded.to(torch.float64), cotangents(outputs))
    return (
        tuple(e + (o - w) * scale for e, o, w in zip(exact_outputs, outputs, wide_outputs, strict=True)),
        {name: exact_gradients[name] + (gradients[name] - wide_gradients[name]) * scale for name in gradients},
    )


def assert_same_bits(actual: Tensor, expected: Tensor, name: str = "result") -> None:
    """Asserts equality bit by bit, signs of zeros included; a NaN equals a NaN of any payload."""
    assert actual.shape == expected.shape, f"{name}: shape {list(actual.shape)}, not {list(expected.shape)}"
    assert actual.dtype == expected.dtype, f"{name}: {actual.dtype}, not {expected.dtype}"
    same = (actual == expected) & (actual.signbit() == expected.signbit()) | (actual.isnan() & expected.isnan())
    if not same.all():
        where = tuple(int(index) for index in (~same).nonzero()[0])
        raise AssertionError(
            f"{name}: {int((~same).sum())} of {same.numel()} elements differ; first at {where}: "
            f"{actual[where].item()!r}, expected {expected[where].item()!r}"
        )


@contextlib.contextmanager
def _naming(sample: Sample) -> Iterator[None]:
    """Puts the call in front of an assertion's message."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{sample}\n{error}") from None
