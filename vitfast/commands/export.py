"""``vitfast export``: writes a checkpoint to a file for deployment, and compares the file's outputs with the model's.

The suffix of ``path`` chooses the format: ``.vit`` for ``vitfast.load`` on any machine, ``.pt2`` for C++ and Python
with torch, ``.onnx`` for other engines. With ``precision`` the accelerated model is exported.

Exit code: 0 if the outputs agree, 1 if they do not, 2 after a user error.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vitfast.commands.command_options import ExportOptions
from vitfast.data.collection import list_images
from vitfast.errors import UserError
from vitfast.evaluation.image_files import read_batches, report_skipped
from vitfast.inference.accelerate import accelerate
from vitfast.inference.export import check_path, export
from vitfast.models.preprocessing_settings import timm_settings_of
from vitfast.models.saved_exits import SavedExits
from vitfast.runs.trained_model import PREPROCESSING, TrainedModel


def run(options: ExportOptions) -> int:
    """Runs the command; returns the exit code."""
    check_path(options.path)
    if options.int8 and options.images is None:
        raise UserError("int8=true needs images=… for the calibration: a hundred or more images of the kind to expect")
    if options.precision is not None and options.path.endswith(".onnx"):
        raise UserError(f"precision={options.precision} is of accelerated models, which ONNX cannot hold; leave it out")
    trained = options.load()
    num_exits: int = getattr(trained.model, "num_exits", 1)
    if options.exit is not None and not (num_exits > 1 and 1 <= options.exit <= num_exits):
        allowed = f"allowed: 1 to {num_exits}" if num_exits > 1 else "the model has one exit; leave it out"
        raise UserError(f"exit={options.exit} is out of range; {allowed}")
    images = None if options.images is None else _images(trained, options.images, options.max_images)
    model = trained.model
    settings = {name: trained.data[name] for name in PREPROCESSING}
    model.pretrained_cfg = timm_settings_of(settings)
    model.class_names = trained.class_names  # type: ignore[assignment]
    if trained.exit_thresholds is not None:
        model.saved_exits = SavedExits((tuple(trained.exit_thresholds),))
    exported = model if options.precision is None else accelerate(model, options.precision)
    exit = None if options.exit is None else options.exit - 1
    report = export(exported, options.path, images=images, int8=options.int8, exit=exit, aot=options.aot)
    print(f"{trained.describe()}\n{report}")
    return 0 if report.agrees else 1


def _images(trained: TrainedModel, images: str, max_images: int) -> Tensor:
    paths = list(list_images(images))
    step = max(1, len(paths) // max_images)  # folders are sorted by class
    chosen = paths[::step][:max_images]
    skipped: list[Path] = []
    batches = [batch for _, batch in read_batches(trained, chosen, 32, skipped)]
    report_skipped(skipped, len(chosen))
    if not batches:
        raise UserError(f"images={images}: none of the images can be read")
    return torch.cat(batches)
