"""Accelerated models on a GPU: beside the source and timm's model, operator by operator and compiled."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vitfast.benchmarking.agreement import joined
from vitfast.benchmarking.comparison import Comparison, Contest
from vitfast.benchmarking.foreign_model import Unavailable, timm_model
from vitfast.benchmarking.model_comparison import DTYPES, WEIGHT, sample_images
from vitfast.benchmarking.subject import Subject
from vitfast.benchmarking.work import count_gflop, gigabytes
from vitfast.inference.accelerate import accelerate
from vitfast.inference.early_exit import EarlyExit
from vitfast.models import DVT, ConViT, ImageModel, build_model

Model = Callable[[Tensor], Tensor | tuple[Tensor, ...]]

# in this order, as far as a backend takes the inputs
_SDPA_ORDER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def accelerated_comparison(
    model_name: str, batch: int, precision: str, device: torch.device, *, compile_mode: str | None
) -> Comparison:
    """The question how fast an accelerated model is beside what people run: timm's model, where there is one.

    Images and weights have the precision's type for all. The others attend through cuDNN, where it takes the shapes.

    Args:
        model_name: one of ``vitfast.list_models()``.
        batch: images in a run.
        precision: a key of ``DTYPES``.
        device: where it runs.
        compile_mode: ``torch.compile``'s mode; None: nothing is compiled.
    """

    def build() -> Contest:
        torch.compiler.reset()  # models of one class share a limit of recompilations
        own = _own_model(model_name, device)
        images = sample_images(own, batch)
        reference = _run(own, images)
        gflop = count_gflop(lambda: _run(own, images))
        inputs = images.to(DTYPES[precision])
        fast = accelerate(own, precision, device)
        rivals, left_out = _rivals(own, inputs, compile_mode)
        weights = [parameter.to(DTYPES[precision]) for parameter in own.parameters()]
        return Contest(
            subjects=[_subject("vitfast", fast, inputs), *(_subject(name, rivals[name], inputs) for name in rivals)],
            reference=lambda: reference,
            reference_name="vitfast's source in fp32",
            left_out=left_out,
            images=batch,
            gflop=gflop,
            gigabyte=gigabytes([*weights, inputs, reference]),
        )

    return Comparison(
        mode="inference",
        title=f"{model_name}, batch {batch}, {precision}, accelerated",
        labels={"model": model_name, "batch": batch},
        precision=precision,
        weight=WEIGHT,
        build=build,
    )


def early_exit_comparison(model_name: str, batch: int, precision: str, device: torch.device) -> Comparison:
    """The question how fast images leave a model with exits, when half of those that reach an exit leave there.

    Where an image leaves may depend on rounding, so that results are not compared.

    Args:
        model_name: one of ``vitfast.list_models("dvt*")``.
        batch: images in a run.
        precision: a key of ``DTYPES``.
        device: where it runs.
    """

    def build() -> Contest:
        own = _own_model(model_name, device)
        assert isinstance(own, DVT)
        images = sample_images(own, batch)
        thresholds = _halving_thresholds(own, images)
        gflop = count_gflop(lambda: EarlyExit(own, thresholds)(images))
        inputs = images.to(DTYPES[precision])
        models = {
            "vitfast": accelerate(own, precision, device),
            "source eager": copy.deepcopy(own).to(DTYPES[precision]),
        }
        subjects = []
        for name, model in models.items():
            early = EarlyExit(model, thresholds)
            subjects.append(Subject(name, run=lambda early=early: early(inputs)))  # type: ignore[misc]
        gigabyte = gigabytes([*models["source eager"].parameters(), inputs])
        return Contest(subjects=subjects, images=batch, gflop=gflop, gigabyte=gigabyte)

    return Comparison(
        mode="inference",
        title=f"{model_name}, batch {batch}, {precision}, half of the images leave at each exit",
        labels={"model": model_name, "batch": batch, "exits": "half"},
        precision=precision,
        weight=WEIGHT,
        build=build,
    )


def _own_model(model_name: str, device: torch.device) -> ImageModel:
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        return build_model(model_name).eval()


def _rivals(own: ImageModel, inputs: Tensor, compile_mode: str | None) -> tuple[dict[str, Model], dict[str, str]]:
    """What others run, and what cannot be run and why."""
    try:
        library, foreign = "timm", _timm_twin(own)
    except Unavailable:
        library, foreign = "source", copy.deepcopy(own)
    foreign = foreign.to(inputs.dtype)
    rivals: dict[str, Model] = {f"{library} eager": _attending_through_cudnn(foreign)}
    left_out = {}
    if compile_mode is not None:
        name = f"{library} compiled"
        compiled = torch.compile(foreign, dynamic=False, mode=compile_mode)
        rival = _attending_through_cudnn(compiled)
        try:
            _run(rival, inputs)  # what it does not take is told only here
            rivals[name] = rival
        except Exception as error:
            lines = str(error).strip().splitlines()
            left_out[name] = f"failed: {type(error).__name__}: {lines[0] if lines else ''}"
    return rivals, left_out


def _timm_twin(own: ImageModel) -> nn.Module:
    if not isinstance(own, ConViT):
        return timm_model(own)
    try:
        import timm
    except ImportError as error:
        raise Unavailable("not installed: pip install timm") from error
    foreign: nn.Module = timm.create_model(own.model_name)
    foreign.load_state_dict(own.state_dict())
    return foreign.to(next(own.parameters()).device).eval()


def _attending_through_cudnn(model: Model) -> Model:
    def run(images: Tensor) -> Tensor | tuple[Tensor, ...]:
        with _sdpa(images):
            return model(images)

    return run


def _sdpa(images: Tensor) -> AbstractContextManager[object]:
    return sdpa_kernel(_SDPA_ORDER, set_priority=True) if images.is_cuda else nullcontext()


def _run(model: Model, images: Tensor) -> Tensor:
    """The logits, of all exits as one vector."""
    with torch.inference_mode():
        logits = model(images)
    return logits if isinstance(logits, Tensor) else joined(logits)


def _subject(name: str, model: Model, inputs: Tensor) -> Subject:
    def run() -> object:
        with torch.inference_mode():
            return model(inputs)

    return Subject(name, run=run, output=lambda: _run(model, inputs))


@torch.inference_mode()
def _halving_thresholds(model: DVT, images: Tensor) -> list[float]:
    """Thresholds that half of the images which reach an exit have the confidence for."""
    thresholds, state = [], model.start(images)
    for _ in range(model.num_exits):
        logits, state = model.advance(state)
        confidence = logits.softmax(dim=1).amax(dim=1)
        thresholds.append(float(confidence.median()))
        stay = confidence < thresholds[-1]
        if stay.any():
            state = state.select(stay)
    return thresholds
