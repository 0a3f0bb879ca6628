"""Whose code computes the operators, for a while: vitfast's kernels or torch's operators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vitfast.errors import UserError
from vitfast.ops.library import CPU_KERNELS, kernel_states, missing_kernel

# accelerated models are made of packed weights: they are no choice of a running process
KERNELS = tuple(kernel for kernel in CPU_KERNELS if kernel != "packed")


@contextmanager
def chosen_kernels(choice: str, device_type: str) -> Iterator[None]:
    """Chooses for the whole process and for as long as the context lasts; ``build_info()`` says what was chosen.

    Args:
        choice: ``"auto"``: what runs anyway (``VITFAST_CUDA_KERNELS`` decides about CUDA); ``"torch"``: torch's
            operators; ``"all"``: every kernel of vitfast that there is, proven by a committed result or not; or names
            of ``KERNELS``, separated by commas: these, and torch's operators for the rest.
        device_type: ``"cpu"`` or ``"cuda"``; other devices are left as they are.

    Raises:
        UserError: a name is unknown, or there is no such kernel for the device.
    """
    if choice == "auto":
        yield
        return
    with kernel_states({(kernel, device_type): _state(kernel, choice, device_type) for kernel in _checked(choice)}):
        yield


def _checked(choice: str) -> tuple[str, ...]:
    """Returns all kernels, if the choice is possible."""
    if choice not in ("torch", "all"):
        unknown = [name for name in _names(choice) if name not in KERNELS]
        if unknown:
            raise UserError(
                f"ops.kernels={choice}: {unknown[0]!r} is unknown; allowed: auto, torch, all, or names separated by "
                f"commas: {', '.join(KERNELS)}"
            )
    return KERNELS


def _state(kernel: str, choice: str, device_type: str) -> str:
    """``"vitfast"`` or ``"torch: <why>"``, as ``build_info`` has it."""
    is_named = choice != "all" and kernel in _names(choice)
    missing = missing_kernel(kernel, device_type)
    if is_named and missing is not None:
        raise UserError(
            f"ops.kernels={choice}: vitfast has no {kernel} kernel for {device_type} here ({missing}); leave it out, "
            "or use ops.kernels=all for those that there are"
        )
    if missing is not None:
        return f"torch: {missing}"
    return "vitfast" if is_named or choice == "all" else f"torch: ops.kernels={choice}"


def _names(choice: str) -> list[str]:
    return [word.strip() for word in choice.split(",")]
