"""The tolerance rule for kernels: flash-attention's, with additional checks of aggregates.

A result is correct if its error against float64 is at most ``factor`` times the error of PyTorch's own operators in the
same dtype, plus the rounding noise of the dtype. Three measures of the error must satisfy this:

- the largest error, which detects a single wrong element;
- the root mean square, which detects many errors below the largest one;
- the gain ``<error, exact> / <exact, exact>``, which detects a systematic scale error that is too small for the other
  two: truncation instead of rounding, a missing tail of a sum, a slightly wrong scale. Its random part is estimated
  from its variance between rows (the last dimension), because the elements of a row share errors.

The last two are averages and need at least ``MIN_ROWS`` rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

FORWARD_FACTOR = 2.0
BACKWARD_FACTOR = 3.0
MIN_ROWS = 32


@dataclass(frozen=True)
class Measure:
    """One measure of the error: the kernel's, torch's in the same dtype, and the allowed value."""

    name: str
    kernel: float
    torch: float
    allowed: float


def assert_as_accurate(
    actual: Tensor,
    same_dtype_torch: Tensor,
    exact_float64: Tensor,
    *,
    factor: float,
    name: str = "result",
    magnitude: float = 0.0,
) -> None:
    """Raises AssertionError with the text of ``inaccuracy``, which has the same arguments, if there is one."""
    message = inaccuracy(actual, same_dtype_torch, exact_float64, factor=factor, name=name, magnitude=magnitude)
    if message is not None:
        raise AssertionError(message)


def inaccuracy(
    actual: Tensor,
    same_dtype_torch: Tensor,
    exact_float64: Tensor,
    *,
    factor: float,
    name: str = "result",
    magnitude: float = 0.0,
) -> str | None:
    """Returns how ``actual`` is less accurate than PyTorch in the same dtype; None if it is not.

    Args:
        actual: the result to judge.
        same_dtype_torch: the result of plain PyTorch operators in the same dtype.
        exact_float64: the result in float64 from the same (rounded) inputs.
        factor: how many times torch's error is allowed: ``FORWARD_FACTOR`` or ``BACKWARD_FACTOR``.
        name: the tensor's name in the message.
        magnitude: the size of the numbers that were summed, where it exceeds that of the result (they cancel).

    Returns:
        The worst coordinate, both errors there, and every measure that is exceeded; or None.
    """
    if actual.shape != exact_float64.shape:
        return f"{name}: shape {list(actual.shape)}, not {list(exact_float64.shape)}"
    if actual.dtype != same_dtype_torch.dtype:
        return f"{name}: {actual.dtype}, not {same_dtype_torch.dtype}"
    if exact_float64.dtype != torch.float64:
        return f"{name}: the exact result must be float64, not {exact_float64.dtype}"
    if actual.numel() == 0:
        return None
    dtype = actual.dtype
    finite = torch.isfinite(exact_float64.to(dtype))
    wrong = _non_finite_mismatch(actual.detach(), exact_float64, finite, name)
    if wrong is not None:
        return wrong
    error = torch.where(finite, actual.detach().double() - exact_float64, 0.0)
    torch_error = torch.where(finite, same_dtype_torch.detach().double() - exact_float64, 0.0)
    exact = torch.where(finite, exact_float64, 0.0)
    if not torch_error.isfinite().all():
        return f"{name}: torch's own result overflows in {dtype}; it measures nothing"

    measures = _measures(error, torch_error, exact, dtype, factor, magnitude)
    exceeded = [measure for measure in measures if not measure.kernel <= measure.allowed]
    return _message(name, actual, same_dtype_torch, exact, error, exceeded, factor) if exceeded else None


def _non_finite_mismatch(actual: Tensor, exact: Tensor, finite: Tensor, name: str) -> str | None:
    """Where the exact result overflows the dtype or is NaN, the tested one must be that inf or NaN; nowhere else."""
    expected = torch.where(finite, 0.0, exact.to(actual.dtype).double())
    found = torch.where(torch.isfinite(actual), 0.0, actual.double())
    wrong = (expected != found) & ~(expected.isnan() & found.isnan())
    if not wrong.any():
        return None
    where = _coordinate(wrong.double())
    return (
        f"{name}: {int(wrong.sum())} of {wrong.numel()} elements should be finite and are not, or the reverse; "
        f"first at {where}: {actual[where].item()}, exact {exact[where].item()}"
    )


def _measures(
    error: Tensor, torch_error: Tensor, exact: Tensor, dtype: torch.dtype, factor: float, magnitude: float
) -> list[Measure]:
    """The measures, each with its bound: factor * torch's error + what rounding alone can do."""
    info = torch.finfo(dtype)
    spacing_at_zero = info.smallest_normal * info.eps
    largest = max(exact.abs().max().item(), magnitude)
    # One rounding has an error of up to eps / 2; four roundings, like flash-attention's 2 * max|ref + 0.3 - 0.3 - ref|.
    # With few elements torch's error is random and sums may cancel: four times that.
    roundings = 4 if exact.numel() >= MIN_ROWS else 16
    torch_largest = torch_error.abs().max().item()
    max_allowed = factor * torch_largest + roundings * info.eps / 2 * largest + spacing_at_zero
    measures = [Measure("largest error", error.abs().max().item(), torch_largest, max_allowed)]

    rows = exact.numel() // exact.shape[-1] if exact.dim() else 1
    energy = exact.square().sum().item()
    if rows < MIN_ROWS or energy == 0.0:
        return measures
    rms_allowed = factor * _rms(torch_error) + info.eps * max(_rms(exact), magnitude) + spacing_at_zero
    measures.append(Measure("root mean square error", _rms(error), _rms(torch_error), rms_allowed))

    # All float32 elements may share an error of one or two roundings (an exponential that is
    # biased by half a unit); results rounded to a narrower type may not: truncating them has a gain of -0.36 eps.
    shared = info.eps / 4 if info.bits < 32 else 2 * info.eps
    row_gains = (error * exact).flatten(0, -2).sum(-1) / (energy / rows)
    by_chance = 5 * row_gains.std().item() / math.sqrt(rows)
    torch_gain = abs((torch_error * exact).sum().item()) / energy
    measures.append(Measure("gain", abs(row_gains.mean().item()), torch_gain, factor * torch_gain + shared + by_chance))
    return measures


def _rms(tensor: Tensor) -> float:
    return tensor.square().mean().sqrt().item()


def _coordinate(badness: Tensor) -> tuple[int, ...]:
    """The coordinate of the largest element."""
    return tuple(int(index) for index in torch.unravel_index(badness.argmax(), badness.shape))


def _message(
    name: str,
    actual: Tensor,
    same_dtype_torch: Tensor,
    exact: Tensor,
    error: Tensor,
    exceeded: list[Measure],
    factor: float,
) -> str:
    where = _coordinate(error.abs())
    torch_error = abs(same_dtype_torch[where].item() - exact[where].item())
    lines = [
        f"{name} {list(actual.shape)} {actual.dtype} is less accurate than {factor:g} x torch + rounding noise",
        f"  worst at {where}: {actual[where].item():.9g}, torch {same_dtype_torch[where].item():.9g}, "
        f"exact {exact[where].item():.9g}; error {error[where].abs().item():.3g}, torch's there {torch_error:.3g}",
    ]
    lines += [f"  {m.name}: {m.kernel:.3g}, torch's {m.torch:.3g}, allowed {m.allowed:.3g}" for m in exceeded]
    return "\n".join(lines)
