"""Whole models: one forward pass of a batch, vitfast against torchvision and timm."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from vitfast.api import create_model
from vitfast.benchmarking.comparison import Comparison, Contest
from vitfast.benchmarking.foreign_model import Unavailable, timm_model, torchvision_model
from vitfast.benchmarking.subject import Subject
from vitfast.benchmarking.work import count_gflop
from vitfast.inference.ir import PRECISIONS
from vitfast.models import ImageModel

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# the order in which they are listed, and in which a reference is chosen
_FOREIGN: dict[str, Callable[[ImageModel], nn.Module]] = {"torchvision": torchvision_model, "timm": timm_model}

WEIGHT = 4.0


def inference_comparison(
    model_name: str,
    batch: int,
    precision: str,
    device: torch.device,
    *,
    compile: bool = False,
    libraries: Collection[str] | None = None,
) -> Comparison:
    """The question how fast each library runs a model in evaluation mode; inputs and weights have the precision's type.

    Args:
        model_name: one of ``vitfast.list_models()``.
        batch: images in a run.
        precision: a key of ``DTYPES``.
        device: where it runs.
        compile: also measure each model through ``torch.compile``.
        libraries: whose models are measured beside; None: all.
    """

    def build() -> Contest:
        models, left_out = build_models(model_name, device, libraries)
        images = sample_images(models["vitfast"], batch)
        reference_name = next((name for name in models if name != "vitfast"), None)
        reference = None if reference_name is None else logits(models[reference_name].eval(), images)
        for model in models.values():
            model.eval().to(DTYPES[precision])
        inputs = images.to(DTYPES[precision])
        if compile:
            models |= {f"{name} compiled": compiled(model) for name, model in models.items()}
        return Contest(
            subjects=[inference_subject(name, model, inputs) for name, model in models.items()],
            reference=None if reference is None else lambda: reference,
            reference_name=f"{reference_name} in fp32" if reference_name else "",
            left_out=left_out,
            images=batch,
            gflop=count_gflop(lambda: logits(models["vitfast"], inputs)),
        )

    return Comparison(
        mode="inference",
        title=f"{model_name}, batch {batch}, {precision}",
        labels={"model": model_name, "batch": batch},
        precision=precision,
        weight=WEIGHT,
        build=build,
    )


def build_models(
    model_name: str, device: torch.device, libraries: Collection[str] | None = None
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Builds a model of each library with the same random weights, in fp32 and in training mode.

    Args:
        model_name: one of ``vitfast.list_models()``.
        device: where they lie.
        libraries: beside vitfast; None: all.

    Returns:
        Library -> model, vitfast first; and library -> why it cannot take part.
    """
    left_out = {}
    with torch.random.fork_rng(devices=[]):  # the others draw weights, too, before they are given these
        torch.manual_seed(0)
        own = create_model(model_name).to(device)
        models: dict[str, nn.Module] = {"vitfast": own}
        for name, build in _FOREIGN.items():
            if libraries is not None and name not in libraries:
                continue
            try:
                models[name] = build(own)
            except Unavailable as error:
                left_out[name] = str(error)
    return models, left_out


def compiled(model: nn.Module) -> nn.Module:
    """Returns a model behind ``torch.compile``, for fixed shapes, with nothing left of earlier comparisons."""
    # Models of one class share a limit of recompilations, behind which they would quietly run uncompiled.
    torch.compiler.reset()
    return torch.compile(model, dynamic=False)  # type: ignore[return-value]


def can_accelerate(precision: str, device: torch.device) -> bool:
    """Whether ``vitfast.accelerate`` computes in this precision on this device."""
    return precision in PRECISIONS.get(device.type, ())


def sample_images(model: nn.Module, batch: int) -> Tensor:
    """Random images ``[B, C, H, W]`` in fp32 for a vitfast model, the same ones in every run."""
    assert isinstance(model, ImageModel)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, model.in_chans, model.img_size, model.img_size, generator=generator)
    return images.to(next(model.parameters()).device)


def inference_subject(name: str, model: nn.Module, images: Tensor) -> Subject:
    """One forward pass of a model, checked by its logits."""
    return Subject(name, run=lambda: logits(model, images), output=lambda: logits(model, images))


def logits(model: nn.Module, images: Tensor) -> Tensor:
    """What a model in evaluation mode makes of images."""
    with torch.inference_mode():
        result: Tensor = model(images)
    return result
