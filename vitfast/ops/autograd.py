"""What the operators' autograd formulas share."""

from __future__ import annotations

from typing import Any, NoReturn

import torch


def forbid_double_backward(raw_operator: str, public_name: str) -> None:
    """Registers an autograd formula on a backward operator that says that there is no second derivative."""

    def backward(ctx: Any, *grads: Any) -> NoReturn:
        raise NotImplementedError(
            f"vitfast.ops.{public_name} has no second derivative; for double backward compute it with "
            f"vitfast.ops.reference.{public_name}"
        )

    torch.library.register_autograd(f"vitfast::{raw_operator}", backward)
