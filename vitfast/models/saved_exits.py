"""The exit thresholds that a checkpoint stores beside its weights."""

from __future__ import annotations

from dataclasses import dataclass

from vitfast.errors import UserError


@dataclass(frozen=True)
class SavedExits:
    """One or several choices of thresholds for ``EarlyExit``, valid for the weights of the same checkpoint.

    A checkpoint that ``vitfast exits`` calibrated holds one choice. A released Dynamic Vision Transformer holds 59,
    from the cheapest to the most accurate.

    Attributes:
        thresholds: for each choice one number per exit, from 0 (every image leaves) to 2 (none does); the last one is
            not read.
        gmacs: for each choice the mean cost of an image in 1e9 multiply-adds; empty if the file does not store it.
        accuracy: for each choice the top-1 accuracy on ImageNet's validation images in 0..1; empty if not stored.
    """

    thresholds: tuple[tuple[float, ...], ...]
    gmacs: tuple[float, ...] = ()
    accuracy: tuple[float, ...] = ()

    @property
    def num_exits(self) -> int:
        """Exits of the model that the thresholds are for."""
        return len(self.thresholds[0])

    def within(self, budget_gmacs: float) -> list[float]:
        """Returns the most expensive thresholds whose mean cost is within a budget.

        Args:
            budget_gmacs: mean cost of an image in 1e9 multiply-adds.

        Raises:
            UserError: the checkpoint does not store the costs of its choices, or all cost more.
        """
        if not self.gmacs:
            raise UserError(
                "the checkpoint does not say what its thresholds cost; take a row of .thresholds, or find some with "
                "vitfast.calibrate_exits(model, loader, budget_gmacs=…)"
            )
        affordable = [
            (cost, row) for cost, row in zip(self.gmacs, self.thresholds, strict=True) if cost <= budget_gmacs
        ]
        if not affordable:
            raise UserError(
                f"budget_gmacs={budget_gmacs:g} is below the cheapest thresholds of the checkpoint; give at least "
                f"{min(self.gmacs):.4g}"
            )
        return list(max(affordable)[1])

    def only(self) -> list[float]:
        """Returns the thresholds of a checkpoint that holds one choice.

        Raises:
            UserError: it holds several.
        """
        if len(self.thresholds) == 1:
            return list(self.thresholds[0])
        costs = f" of {min(self.gmacs):.4g} to {max(self.gmacs):.4g} GMACs an image" if self.gmacs else ""
        how = "model.saved_exits.within(budget_gmacs=…)" if self.gmacs else "a row of model.saved_exits.thresholds"
        raise UserError(
            f"the model's checkpoint holds {len(self.thresholds)} choices of thresholds{costs}; give one: {how}"
        )

    def __str__(self) -> str:
        choices = "1 choice" if len(self.thresholds) == 1 else f"{len(self.thresholds)} choices"
        costs = f", {min(self.gmacs):.4g} to {max(self.gmacs):.4g} GMACs" if self.gmacs else ""
        return f"{choices} for {self.num_exits} exits{costs}"
