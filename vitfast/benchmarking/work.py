"""How much work a run does: what turns a time into GFLOP/s and GB/s."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


def count_gflop(run: Callable[[], object]) -> float | None:
    """Counts the floating-point operations of the matrix products, convolutions and attention in one run.

    A multiply-add is two operations. Torch's formulas count its operators, vitfast's own formulas count vitfast's. One
    count (of vitfast's run) serves all subjects of a comparison: what the task needs, not what each one spends.

    Args:
        run: is called once.

    Returns:
        GFLOP, or None if nothing in it has a formula (LayerNorm, rounding).
    """
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() * 1e-9 or None


def gigabytes(tensors: Iterable[Tensor]) -> float:
    """The size of tensors that a run has to read or write once at least, in GB (1e9 bytes)."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) * 1e-9
