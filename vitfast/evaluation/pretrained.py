"""Models of any source, as ``TrainedModel``: checkpoints, weights files, ``.vit`` files, pretrained models by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import vitfast
from vitfast.errors import UserError, import_optional, one_line
from vitfast.evaluation.checkpoint_data import is_weights_file, load_foreign_checkpoint
from vitfast.inference.vit_file import load_vit
from vitfast.models.foreign_model import TIMM, TORCHVISION
from vitfast.models.preprocessing_settings import preprocessing_settings
from vitfast.runs.trained_model import TrainedModel, load_trained_model, refuse_name


def load_any(
    checkpoint: str | None,
    model: str | None,
    weights: str,
    *,
    device: torch.device,
    headless: bool,
    precision: str | None = None,
) -> TrainedModel:
    """Loads a model.

    Args:
        checkpoint: a run, checkpoint, weights file or ``.vit`` file, whose model is accelerated already and normalizes
            images; None: the pretrained weights of ``model``.
        model: the name of a model, which a weights file may need.
        weights: as in ``load_trained_model``.
        device: to move the model to.
        headless: whether it may be without classes, or with others than its data set's.
        precision: of a ``.vit`` file, as in ``vitfast.load``.

    Raises:
        UserError: there is no such model.
    """
    if checkpoint is None:
        if model is None:
            raise UserError("neither a checkpoint nor a model is given")
        return load_pretrained(model, device, classes=not headless)
    is_vit = checkpoint.endswith(".vit")
    if not is_vit and is_weights_file(checkpoint):
        return load_foreign_checkpoint(checkpoint, model, None, device, any_classes=headless)
    refuse_name(checkpoint, model)
    if is_vit:
        return _load_vit(checkpoint, precision, device, headless)
    return load_trained_model(checkpoint, weights=weights, device=device, headless=headless)


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


def _load_vit(path: str, precision: str | None, device: torch.device, headless: bool) -> TrainedModel:
    model: Any = load_vit(Path(path), precision, device, normalize=True)
    settings = preprocessing_settings(model)
    if settings is None:
        raise UserError(
            f"checkpoint={path} does not record the preprocessing of images; set pretrained_cfg of the model that is "
            "exported, or write the file by python -m vitfast.export"
        )
    names = getattr(model, "class_names", None)
    if names is None:
        names = [str(index) for index in range(getattr(model, "num_classes", 0))]
    if not names and not headless:
        raise UserError(f"checkpoint={path} has no classes; compute its embeddings by python -m vitfast.embed")
    saved = getattr(model, "saved_exits", None)
    manifest = {
        "model": {"name": model.report().source},
        "class_names": names,
        "data": settings,
        "exit_thresholds": None if saved is None else saved.only(),
    }
    return TrainedModel(model, Path(path), manifest, "model")


def _of_transformers(name: str, classes: bool) -> Any:
    transformers = import_optional("transformers", f"model={name}")
    factory = transformers.AutoModelForImageClassification if classes else transformers.AutoModel
    try:
        return factory.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(f"model={name} cannot be loaded by transformers: {one_line(error)[:300]}") from error
