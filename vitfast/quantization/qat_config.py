"""The two steps of quantization-aware training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitfast.errors import UserError
from vitfast.quantization.configs import QuantizationConfig

Step = Literal["prepare", "convert"]


@dataclass(frozen=True)
class QATConfig:
    """Quantization-aware training: prepare, train, convert.

    Attributes:
        base: the numerics. ``None`` in the second step means those that were prepared.
        step: ``"prepare"``: weights stay float32 and are rounded in each forward pass, gradients pass straight through;
            ``"convert"``: weights (and LayerNorms' gammas) are rounded for good, activations as before.

    Raises:
        UserError: an unknown step, or no base to prepare.
    """

    base: QuantizationConfig | None = None
    step: Step = "prepare"

    def __post_init__(self) -> None:
        if self.step not in ("prepare", "convert"):
            raise UserError(f"step must be 'prepare' or 'convert'; got {self.step!r}")
        if self.base is None and self.step == "prepare":
            raise UserError("step='prepare' needs a base, for example QATConfig(FP16_16Config(), step='prepare')")
        if self.base is not None and not isinstance(self.base, QuantizationConfig):
            raise UserError(f"base must be a configuration such as FP16_32Config(); got {self.base!r}")
