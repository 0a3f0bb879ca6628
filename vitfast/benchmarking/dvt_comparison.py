"""The Dynamic Vision Transformer with all exits: vitfast's beside the code that it was published with."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitfast.api import create_model
from vitfast.benchmarking.agreement import joined
from vitfast.benchmarking.comparison import Comparison, Contest
from vitfast.benchmarking.foreign_model import Unavailable
from vitfast.benchmarking.model_comparison import DTYPES, WEIGHT, can_accelerate, sample_images
from vitfast.benchmarking.subject import Subject
from vitfast.benchmarking.work import count_gflop
from vitfast.errors import UserError
from vitfast.inference.accelerate import accelerate
from vitfast.models import DVT

ORIGINALS = {"dvt_t2t_vit_12": "DVT_T2t_vit_12", "dvt_t2t_vit_14": "DVT_T2t_vit_14"}


def dvt_comparison(
    model_name: str, original: str | None, batch: int, precision: str, device: torch.device
) -> Comparison:
    """The question how fast all exits of a DVT run, in vitfast (accelerated, too) and in the original code.

    Args:
        model_name: a key of ``ORIGINALS``.
        original: a checkout of github.com/blackfeather-wang/Dynamic-Vision-Transformer; None: measure vitfast alone.
        batch: images in a run.
        precision: a key of ``DTYPES``.
        device: where it runs.

    Raises:
        UserError: there is no such model.
    """
    if model_name not in ORIGINALS:
        raise UserError(f"model={model_name}: the original code has {', '.join(ORIGINALS)}")

    def build() -> Contest:
        own = create_model(model_name)
        assert isinstance(own, DVT)
        left_out = {}
        models: dict[str, nn.Module] = {"vitfast": own}
        try:
            models["original"] = _build_original(ORIGINALS[model_name], original)
            own.load_state_dict(own.own_keys(models["original"].state_dict()), strict=True)
        except Unavailable as error:
            left_out["original"] = str(error)
        for model in models.values():
            model.to(device).eval()
        images = sample_images(own, batch)
        reference = joined(_outputs(models["original"], images)) if "original" in models else None
        fast = accelerate(own, precision) if can_accelerate(precision, device) else None
        for model in models.values():
            model.to(DTYPES[precision])
        inputs = images.to(DTYPES[precision])
        subjects = [_subject(name, model, inputs) for name, model in models.items()]
        if fast is not None:
            subjects.insert(1, _subject("vitfast accelerated", fast, images))
        return Contest(
            subjects=subjects,
            reference=None if reference is None else lambda: reference,
            reference_name="" if reference is None else "the original in fp32",
            left_out=left_out,
            images=batch,
            gflop=count_gflop(lambda: _outputs(own, inputs)),
        )

    return Comparison(
        mode="inference",
        title=f"all exits of {model_name}, batch {batch}, {precision}",
        labels={"model": model_name, "batch": batch},
        precision=precision,
        weight=WEIGHT,
        build=build,
    )


def _build_original(name: str, checkout: str | None) -> nn.Module:
    """Builds the original model with random weights.

    Raises:
        Unavailable: there is no checkout, or it cannot be imported.
        UserError: the folder holds something else.
    """
    if checkout is None:
        raise Unavailable("no checkout: git clone https://github.com/blackfeather-wang/Dynamic-Vision-Transformer")
    folder = Path(checkout).expanduser().resolve()
    if not (folder / "models" / "t2t_vit.py").is_file():
        raise UserError(f"original={checkout} has no models/t2t_vit.py; give a checkout of Dynamic-Vision-Transformer")
    try:
        import timm  # noqa: F401 (the checkout has a copy that today's torch cannot import; this one comes first)
    except ImportError as error:
        raise Unavailable("the original needs timm: pip install timm") from error
    sys.path.insert(0, str(folder))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that timm has moved
            module: Any = importlib.import_module("models.t2t_vit")
    finally:
        sys.path.remove(str(folder))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = getattr(module, name)()
    return model


@contextmanager
def _without_cuda_calls(device: torch.device) -> Iterator[None]:
    """The original writes ``.cuda()`` within its forward pass; on another device that means to stay there."""
    if device.type == "cuda":
        yield
        return
    before = torch.Tensor.cuda
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.cuda = before  # type: ignore[method-assign]


def _subject(name: str, model: nn.Module, images: Tensor) -> Subject:
    return Subject(name, run=lambda: _outputs(model, images), output=lambda: joined(_outputs(model, images)))


def _outputs(model: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    """The logits of every exit."""
    with torch.inference_mode(), _without_cuda_calls(images.device):
        outputs: tuple[Tensor, ...] = model(images)
    return outputs
