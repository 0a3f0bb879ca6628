"""The model of a run that learns in simulated low precision."""

from __future__ import annotations

from pathlib import Path

from vitfast.config.schema import QuantizeConfig
from vitfast.errors import UserError
from vitfast.evaluation.number_format import format_overrides, number_format
from vitfast.models import ImageModel
from vitfast.quantization.calibrate import calibrate
from vitfast.quantization.configs import QATConfig
from vitfast.quantization.quantize import quantize_
from vitfast.quantization.record import quantize_from_record
from vitfast.runs.checkpoint import CheckpointError, read_manifest_file
from vitfast.training.training_data import TrainingData


def prepare_for_training(
    config: QuantizeConfig, model: ImageModel, data: TrainingData, checkpoint: Path | None = None
) -> None:
    """Prepares a model for quantization-aware training, if the run asks for it; parameters keep names and values.

    Where activations are to be calibrated, the first batches of the run are looked at; every rank looks at its share,
    and all agree.

    Args:
        config: of the run; without a format nothing happens.
        model: with the weights that training starts from, on its device.
        data: of the run.
        checkpoint: of a run that goes on: the model is prepared as it was, with the same ranges.

    Raises:
        UserError: there is no such format, an option does not go with it, or the model cannot be quantized.
    """
    if config.format is None:
        return
    if checkpoint is not None:
        record = read_manifest_file(checkpoint).get("quantization")
        if record is None:
            raise CheckpointError(f"{checkpoint} is not of a run with quantize.format={config.format}")
        quantize_from_record(model, record)
        return
    base, overrides = number_format(config, "quantize."), format_overrides(config, "quantize.")
    try:
        quantize_(model, QATConfig(base), overrides=overrides)
    except UserError as error:
        raise UserError(f"quantize.format={config.format}: {error}") from error
    calibrate(model, data.train_loader(epoch=0, first_step=0), batches=config.calibration_batches)
