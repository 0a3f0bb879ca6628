"""Pretrained models by name, as ``TrainedModel``."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

import vitfast
from vitfast.data.preprocessing import preprocessing_settings
from vitfast.errors import UserError, one_line
from vitfast.models.foreign_model import TIMM, TORCHVISION
from vitfast.runs.trained_model import TrainedModel


def load_pretrained(name: str, device: torch.device, *, classes: bool) -> TrainedModel:
    """Loads pretrained weights from the Hugging Face hub, or its cache.

    Args:
        name: ``timm/NAME``, a name of ``vitfast.list_models()`` with weights of timm, or a model of transformers:
            ``ORGANIZATION/NAME`` or a folder.
        device: to move the model to.
        classes: whether its classes are needed; else a model of transformers is loaded without its classifier.

    Raises:
        UserError: there are no such weights, or their preprocessing is unknown.
    """
    if "/" in name and not name.startswith((TIMM, TORCHVISION)):
        model: Any = _of_transformers(name, classes)
        id2label = model.config.id2label if classes else {}
        names = [str(id2label[index]) for index in sorted(id2label)]
    else:
        model = vitfast.create_model(name, pretrained=True)
        names = [str(index) for index in range(model.num_classes)]
    settings = preprocessing_settings(model)
    if settings is None:
        raise UserError(f"model={name} does not know its preprocessing; give its weights as checkpoint=FILE")
    manifest = {"model": {"name": name}, "class_names": names, "data": settings}
    return TrainedModel(model.eval().to(device), Path(name), manifest, "model")


def _of_transformers(name: str, classes: bool) -> Any:
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise UserError(f"model={name} needs transformers: pip install transformers; or give timm/NAME") from error
    factory = transformers.AutoModelForImageClassification if classes else transformers.AutoModel
    try:
        return factory.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(f"model={name} cannot be loaded by transformers: {one_line(error)[:300]}") from error
