"""Writes models to files for other programs: ``.vit``, ``.pt2`` and ``.onnx``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitfast.errors import UserError, one_line
from vitfast.files import atomic_file
from vitfast.inference.acceleration_report import Agreement
from vitfast.inference.agreement import output_agreement
from vitfast.inference.early_exit.early_exit import EarlyExit
from vitfast.inference.image_tower import ImageTower
from vitfast.inference.ir import CascadeSpec, SequenceSpec
from vitfast.inference.lowering import lower
from vitfast.inference.onnx_export import onnx_engines, write_onnx
from vitfast.inference.pt2_file import is_accelerated, load_pt2, write_pt2
from vitfast.inference.vit_file import load_vit, write_vit
from vitfast.models.preprocessing_settings import preprocessing_settings
from vitfast.models.saved_exits import SavedExits

SUFFIXES = (".vit", ".pt2", ".onnx")
_COSINE, _INT8_COSINE = 0.9999, 0.95  # below, the file does not agree with the model


@dataclass(frozen=True)
class ExportReport:
    """What ``export`` wrote.

    Attributes:
        path: the file.
        num_bytes: its size.
        agreement: of the file's outputs with the model's; the smallest over ``engines``.
        threshold: the cosine similarity that outputs need to agree.
        engines: what ran the file.
    """

    path: Path
    num_bytes: int
    agreement: Agreement
    threshold: float
    engines: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether the outputs agree with the model's."""
        return self.agreement.cosine >= self.threshold

    def __str__(self) -> str:
        result = "agrees with the model" if self.agrees else "DIFFERS from the model"
        return (
            f"{self.path}, {self.num_bytes / 2**20:.1f} MiB, {result} in {', '.join(self.engines)} "
            f"(threshold: cosine similarity {self.threshold})\n{self.agreement}"
        )


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    images: Tensor | None = None,
    int8: bool = False,
    exit: int | None = None,
    aot: bool = False,
) -> ExportReport:
    """Writes a model to a file for deployment, reads it again and compares the outputs.

    ========  =========================================================================================
    suffix    content
    ========  =========================================================================================
    .vit      weights and intermediate representation, for ``vitfast.load`` on any machine; no code
    .pt2      a program of ``torch.export`` for any batch size, or with ``aot`` an AOTInductor package
    .onnx     the source's graph in opset 18 or newer, for any batch size; with ``int8`` static QDQ
    ========  =========================================================================================

    Args:
        model: a source model, or for ``.vit`` and ``.pt2`` also an accelerated one. An accelerated model's ``.pt2``
            calls vitfast's operators and holds weights packed for this CPU's instruction set. For ``.vit``, also an
            ``EarlyExit``, whose thresholds are stored.
        path: the suffix chooses the format; an existing file is replaced.
        images: ``[B, in_chans, H, W]``, as the model takes them: the comparison is on them, and the calibration of
            ``int8``. None: random images.
        int8: for ``.onnx``: whether to quantize linear layers to int8 from the ranges on ``images``.
        exit: of a model with exits for ``.pt2`` and ``.onnx``: index of the exit to export; None: all, as a tuple.
        aot: for ``.pt2``: whether to compile the program, which takes a C++ compiler and a minute or more.

    Raises:
        UserError: the suffix is unknown, an argument does not fit the format, or the model cannot be exported.
    """
    path = Path(path)
    _check_arguments(model, path, images, int8=int8, exit=exit, aot=aot)
    saved: SavedExits | None = getattr(model, "saved_exits", None)
    if isinstance(model, EarlyExit):
        saved = SavedExits((tuple(model.thresholds),))
        model = model.model
    if int8 and images is None:
        raise UserError("int8=True needs images= for the calibration: a hundred or more, preprocessed as for the model")
    if images is None:
        images = torch.randn(4, *_image_shape(model), generator=torch.Generator().manual_seed(0))
    was_training = model.training
    if was_training:
        model.eval()
    try:
        function = model if exit is None else _Exit(model, exit)
        with torch.no_grad(), _explain(path):
            engines = _write(function, path, images, saved, int8=int8, aot=aot)
            results = [output_agreement(function, run, images) for run in engines.values()]
    finally:
        if was_training:
            model.train()
    worst = min(results, key=lambda result: result.cosine)
    return ExportReport(path, path.stat().st_size, worst, _INT8_COSINE if int8 else _COSINE, tuple(engines))


class _Exit(nn.Module):
    """One exit of a model with several."""

    def __init__(self, model: Any, index: int) -> None:
        super().__init__()
        exits = getattr(model, "num_exits", 1)
        if exits < 2 or not -exits <= index < exits:
            raise UserError(f"exit={index} is out of range: the model has {exits} exit{'s' if exits > 1 else ''}")
        self.model = model
        self.index = index
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)[self.index]
        return logits


def _write(
    model: nn.Module, path: Path, images: Tensor, saved: SavedExits | None, *, int8: bool, aot: bool
) -> dict[str, Callable[[Tensor], Any]]:
    """Writes the file; returns what runs it, by name."""
    if path.suffix == ".vit":
        write_vit(model, path, saved)
        return {"vitfast.load": load_vit(path, device=getattr(model, "device", None))}
    if path.suffix == ".onnx":
        with atomic_file(path) as temporary:
            write_onnx(model, temporary, images, int8=int8)
        return onnx_engines(path)
    with atomic_file(path) as temporary:
        write_pt2(model, temporary, images, aot=aot)
    return {"vitfast.load": load_pt2(path)}


def _image_shape(model: nn.Module) -> tuple[int, int, int]:
    """Returns channels, height and width of the images that a model takes."""
    tower = next((module for module in model.modules() if isinstance(module, ImageTower)), None)
    if tower is not None and tower.adapter.takes_images:
        patches = tower.model.embedding.patches
        return (patches.in_chans, *patches.image_size)
    spec = None if tower is not None else lower(model).spec
    if spec is None:
        settings = preprocessing_settings(model)
        if settings is not None:
            return (settings["in_chans"], settings["img_size"], settings["img_size"])
    if spec is None or isinstance(spec, SequenceSpec):
        raise UserError("the size of the images is not known; give images=, [B, channels, height, width]")
    first = spec.exits[0] if isinstance(spec, CascadeSpec) else spec
    return (first.embedding.patches.in_chans, *first.embedding.patches.image_size)


def check_path(path: str | os.PathLike[str]) -> None:
    """Checks that a file can be written and that its suffix is known.

    Raises:
        UserError: otherwise.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UserError(f"path={path} has the suffix {path.suffix!r}; allowed: {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise UserError(f"path={path} cannot be written: the folder {path.parent} does not exist; create it first")
    if path.is_dir():
        raise UserError(f"path={path} is a folder; give the name of a file")


def _check_arguments(
    model: nn.Module, path: Path, images: Tensor | None, *, int8: bool, exit: int | None, aot: bool
) -> None:
    if not isinstance(model, nn.Module):
        raise UserError(f"export takes a model (torch.nn.Module), got {type(model).__name__}")
    check_path(path)
    for given, argument, suffix in ((int8, "int8=True", ".onnx"), (aot, "aot=True", ".pt2")):
        if given and path.suffix != suffix:
            hint = "; for fewer bits export vitfast.accelerate(model, 'int8')" if int8 else ""
            raise UserError(f"{argument} applies to {suffix} only, and path={path}{hint}")
    if exit is not None and (path.suffix == ".vit" or isinstance(model, EarlyExit)):
        raise UserError(f"exit={exit} applies to .pt2 and .onnx; a .vit file holds all exits")
    if isinstance(model, EarlyExit) and path.suffix != ".vit":
        raise UserError("early exit is control flow, which only .vit stores; export model.model, with exit= for one")
    if is_accelerated(model) and path.suffix == ".onnx":
        raise UserError(
            "an accelerated model computes with operators of vitfast, which ONNX does not have; export "
            "the model that was accelerated"
        )
    if images is not None and not (isinstance(images, Tensor) and images.dim() == 4 and len(images)):
        raise UserError("images must be a tensor [B, channels, height, width] of at least one image")


@contextlib.contextmanager
def _explain(path: Path) -> Iterator[None]:
    """Turns errors of the exporters into user errors."""
    try:
        yield
    except (UserError, OSError, ImportError):
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # the exporters surround it with general advice
            cause = cause.__cause__
        raise UserError(f"{path} cannot be written: {type(cause).__name__}: {one_line(cause)}") from error
