"""Builds the model and the task of a run from its options and data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch

import vitfast
from vitfast.config.schema import HUB, Config, DistillConfig, ModelConfig, QuantizeConfig
from vitfast.data import ImageDataset
from vitfast.errors import UserError
from vitfast.evaluation.checkpoint_data import is_run
from vitfast.evaluation.number_format import format_overrides, number_format
from vitfast.layers import SwavHead
from vitfast.models import ImageModel
from vitfast.models.registry import resolve_fields, resolve_name
from vitfast.quantization.calibrate import calibrate
from vitfast.quantization.configs import QATConfig
from vitfast.quantization.quantize import quantize_
from vitfast.quantization.record import quantize_from_record
from vitfast.runs.run_directory import CONFIG
from vitfast.runs.trained_model import load_trained_model
from vitfast.tasks import DistillationTask, SwavTask, Task, Teacher, create_plain_task
from vitfast.training.distributed import Ranks
from vitfast.training.training_data import TrainingData
from vitfast.weights.checkpoint import load_weights_file
from vitfast.weights.load_weights import stored_model_fields
from vitfast.weights.manifest import CheckpointError, read_manifest
from vitfast.weights.source_checkpoint import stored_weights

# model fields that have options of their own or are determined by the data, and where a user sets them
_SET_ELSEWHERE = {
    "img_size": "model.img_size",
    "drop_path": "model.drop_path",
    "drop_rate": "model.drop_rate",
    "num_classes": "the classes of the data",
    "in_chans": "data.in_chans",
}


def create_training_model(
    config: ModelConfig, data: ImageDataset, resumed: Path | None = None, *, headless: bool = False
) -> ImageModel:
    """Builds the model with the classes, channels and image size of the data.

    Args:
        config: options of the model.
        data: the training images.
        headless: whether the model has no head and returns features.
        resumed: the checkpoint of a run that goes on. Its weights, the record of their model and the options are
            compared before anything of their sizes is allocated, since any of them may have been changed.

    Raises:
        UserError: if a field is invalid, or a checkpoint does not fit.
    """
    for name, place in _SET_ELSEWHERE.items():
        if name in config.fields:
            raise UserError(f"model.fields.{name} cannot be set: it is determined by {place}")
    rates = {"drop_path": config.drop_path, "drop_rate": config.drop_rate}
    fields = {**{name: rate for name, rate in rates.items() if rate}, **config.fields}
    num_classes = 0 if headless else len(data.class_names)
    fields |= {"num_classes": num_classes, "img_size": data.img_size, "in_chans": data.in_chans}
    if resumed is not None:
        _check_resumed_model(resumed, config, fields)
    try:
        model = vitfast.create_model(
            config.name,
            checkpoint=None if config.checkpoint == HUB else config.checkpoint,
            pretrained=config.checkpoint == HUB,
            **fields,
        )
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"model.name={config.name}: {error}") from error
    if config.zero_head:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.startswith(model.head_prefixes):
                    parameter.zero_()
    return model


def _check_resumed_model(checkpoint: Path, config: ModelConfig, fields: Mapping[str, Any]) -> None:
    record = read_manifest(checkpoint)["model"]
    stored = stored_weights(checkpoint, record, load_weights_file(checkpoint, "model"))
    name_found, fields_found = stored_model_fields(stored)
    if config.name is None or config.checkpoint is not None:  # the file of the first weights decided about the rest
        fields_expected = resolve_fields(name_found, **{**asdict(fields_found), **fields})
    else:
        fields_expected = resolve_fields(config.name, **fields)
    expected = {"name": resolve_name(config.name or name_found), **asdict(fields_expected)}
    found = {"name": name_found, **asdict(fields_found)}
    different = [name for name in expected if found.get(name) != expected[name]]
    if different:
        values = ", ".join(f"{name}={expected[name]!r} instead of {found.get(name)!r}" for name in different)
        raise UserError(
            f"{checkpoint.parent / CONFIG} describes another model than {checkpoint.name}: {values}; change it back"
        )


def create_task(config: Config, model: ImageModel, data: ImageDataset, ranks: Ranks) -> Task:
    """Builds the task of a run: classification with one or several exits, distillation if a teacher is given, or SwAV.

    Raises:
        UserError: if the model has no distillation token, the teacher does not fit the data, or SwAV not the model.
    """
    device = ranks.device
    if config.task == "swav":
        return _create_swav_task(config, model, data, ranks)
    smoothing = config.optim.label_smoothing
    if config.distill.teacher is None:
        return create_plain_task(model, smoothing).to(device)
    if getattr(model.fields, "distillation_token", "none") == "none":
        raise UserError(
            f"distill.teacher is given, but model.name={config.model.name} has no distillation token; use a distilled "
            "model such as deit_tiny_distilled_patch16_224, or model.fields.distillation_token=after_class"
        )
    return DistillationTask(
        model,
        _load_teacher(config.distill, data, device),
        kind=cast(Any, config.distill.kind),
        alpha=config.distill.alpha,
        temperature=config.distill.temperature,
        soft_mean=cast(Any, config.distill.soft_mean),
        label_smoothing=smoothing,
    ).to(device)


def _create_swav_task(config: Config, model: ImageModel, data: ImageDataset, ranks: Ranks) -> Task:
    batch, options = config.data.batch_size, config.swav
    if batch % ranks.world:
        raise UserError(
            f"data.batch_size={batch} is not a multiple of the {ranks.world} processes, which task=swav needs"
        )
    if 0 < options.queue_length < batch:
        raise UserError(
            f"swav.queue_length={options.queue_length} is below data.batch_size={batch}; give at least that, or 0"
        )
    with torch.no_grad():
        features = model.eval()(torch.zeros(1, data.in_chans, data.img_size, data.img_size))
    if model.num_exits > 1 or features.dim() != 2 or getattr(model.fields, "distillation_token", "none") != "none":
        raise UserError(f"task=swav needs a model with one vector of features, unlike model.name={config.model.name}")
    return SwavTask(
        model.to(ranks.device),
        SwavHead([features.shape[1], *options.projection], options.prototypes).to(ranks.device),
        assign_crops=options.assign_crops,
        temperature=options.temperature,
        epsilon=options.epsilon,
        iterations=options.iterations,
        freeze_prototypes_steps=options.freeze_prototypes_steps,
        hard_assignment_steps=options.hard_assignment_steps,
        queue_length=options.queue_length // batch * (batch // ranks.world),
        queue_start_step=options.queue_start_step,
        double_precision=options.double_precision,
    )


def _load_teacher(config: DistillConfig, data: ImageDataset, device: torch.device) -> Teacher:
    assert config.teacher is not None
    if is_run(config.teacher):
        trained = load_trained_model(config.teacher, device=device)
        if trained.class_names != list(data.class_names):
            raise UserError(
                f"distill.teacher={config.teacher} was trained on other classes than those of the data "
                f"({len(trained.class_names)}: {', '.join(trained.class_names[:3])}, …); train a teacher on these data"
            )
        model = trained.model
        mean, std = trained.data["mean"], trained.data["std"]
    else:
        # a weights file has no normalization: that of the student is assumed
        model = _teacher_from_file(config, data).to(device)
        mean, std = data.mean, data.std
    if model.num_exits > 1:
        raise UserError(f"distill.teacher={config.teacher} has several exits; a teacher must have one output")
    if model.in_chans != data.in_chans:
        raise UserError(
            f"distill.teacher={config.teacher} reads {model.in_chans} channels, the data have {data.in_chans}; "
            "set data.in_chans for both"
        )
    if model.img_size != data.img_size and not getattr(model, "takes_any_size", False):
        raise UserError(
            f"distill.teacher={config.teacher} reads images of {model.img_size} pixels, the student of "
            f"{data.img_size}; train a teacher at this size"
        )
    return Teacher(model, mean, std, data.mean, data.std)


def _teacher_from_file(config: DistillConfig, data: ImageDataset) -> ImageModel:
    try:
        return vitfast.create_model(
            config.teacher_name, img_size=data.img_size, in_chans=data.in_chans, checkpoint=config.teacher
        )
    except UserError as error:
        hint = "" if config.teacher_name else " (a file without a model name needs distill.teacher_name)"
        raise UserError(f"distill.teacher={config.teacher}: {error}{hint}") from error


def prepare_for_training(
    config: QuantizeConfig, model: ImageModel, data: TrainingData, checkpoint: Path | None = None
) -> None:
    """Prepares a model for quantization-aware training if the run has a format; parameters keep names and values.

    Calibrated activations use the first batches of the run: each rank reads its share, and the ranges are reduced over
    the ranks.

    Raises:
        UserError: if there is no such format, an option does not apply to it, or the model cannot be quantized.
    """
    if config.format is None:
        return
    if checkpoint is not None:
        record = read_manifest(checkpoint).get("quantization")
        if record is None:
            raise CheckpointError(f"{checkpoint} is not of a run with quantize.format={config.format}")
        try:
            quantize_from_record(model, record)
        except UserError as error:
            raise CheckpointError(f"{checkpoint}: {error}") from error
        return
    base, overrides = number_format(config, "quantize."), format_overrides(config, "quantize.")
    try:
        quantize_(model, QATConfig(base), overrides=overrides)
    except UserError as error:
        raise UserError(f"quantize.format={config.format}: {error}") from error
    calibrate(model, data.train_loader(epoch=0, first_step=0), batches=config.calibration_batches)
