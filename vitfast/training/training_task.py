"""What a run learns: from its options, the model and the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch

import vitfast
from vitfast.config.schema import Config, DistillConfig
from vitfast.data import ImageDataset
from vitfast.errors import UserError
from vitfast.models import ImageModel
from vitfast.runs.checkpoint import MANIFEST, list_checkpoints
from vitfast.runs.trained_model import load_trained_model
from vitfast.tasks import DistillationTask, Task, Teacher, create_plain_task


def create_task(config: Config, model: ImageModel, data: ImageDataset, device: torch.device) -> Task:
    """Builds the task of a run: classification, with a teacher if one is named, or of all exits that the model has.

    Args:
        config: of the run.
        model: what learns.
        data: the train split, whose classes and normalisation the teacher has to share or can be adapted to.
        device: where the task goes.

    Raises:
        UserError: if the model cannot learn from a teacher, or the teacher does not know the classes of the data.
    """
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


def _load_teacher(config: DistillConfig, data: ImageDataset, device: torch.device) -> Teacher:
    assert config.teacher is not None
    path = Path(config.teacher)
    if path.is_dir() and ((path / MANIFEST).exists() or list_checkpoints(path)):
        trained = load_trained_model(config.teacher, device=device)
        if trained.class_names != list(data.class_names):
            raise UserError(
                f"distill.teacher={config.teacher} was trained on other classes than the data have "
                f"({len(trained.class_names)}: {', '.join(trained.class_names[:3])}, …); train a teacher on these data"
            )
        model = trained.model
        mean, std = trained.manifest["data"]["mean"], trained.manifest["data"]["std"]
    else:
        # a bare file says nothing about its images: they are taken to be normalised as the student's
        model = _model_from_file(config, data).to(device)
        mean, std = data.mean, data.std
    if model.num_exits > 1:
        raise UserError(f"distill.teacher={config.teacher} has several exits; a teacher gives one answer")
    if model.in_chans != data.in_chans:
        raise UserError(
            f"distill.teacher={config.teacher} reads {model.in_chans} channels, the data have {data.in_chans}; "
            "set data.in_chans for both"
        )
    if model.img_size != data.img_size and not model.model_name.startswith("torchvision/"):
        raise UserError(
            f"distill.teacher={config.teacher} reads images of {model.img_size} pixels, the student of "
            f"{data.img_size}; train a teacher for these"
        )
    return Teacher(model, mean, std, data.mean, data.std)


def _model_from_file(config: DistillConfig, data: ImageDataset) -> ImageModel:
    try:
        return vitfast.create_model(
            config.teacher_name, img_size=data.img_size, in_chans=data.in_chans, checkpoint=config.teacher
        )
    except UserError as error:
        hint = "" if config.teacher_name else " (a file that does not say its model needs distill.teacher_name)"
        raise UserError(f"distill.teacher={config.teacher}: {error}{hint}") from error
