"""A checkpoint's model with its thresholds."""

from __future__ import annotations

from vitfast.errors import UserError
from vitfast.inference import EarlyExit
from vitfast.runs.trained_model import TrainedModel


def create_early_exit(trained: TrainedModel) -> EarlyExit:
    """Puts the thresholds that a checkpoint holds to its model.

    Args:
        trained: with thresholds.

    Raises:
        UserError: they do not fit the model, as those of another one.
    """
    assert trained.exit_thresholds is not None
    try:
        return EarlyExit(trained.model, trained.exit_thresholds)
    except UserError as error:
        raise UserError(
            f"{trained.checkpoint}/manifest.json: exit_thresholds={trained.exit_thresholds} are not those of its model "
            f"{trained.manifest['model']['name']}: {error}; python -m vitfast.exits checkpoint={trained.checkpoint} "
            "budget_gmacs=… stores new ones"
        ) from error
