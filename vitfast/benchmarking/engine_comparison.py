"""Engines: an accelerated model against whatever else runs Vision Transformers on this CPU, in one precision."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vitfast.benchmarking.agreement import joined
from vitfast.benchmarking.arithmetic_peak import arithmetic_peak
from vitfast.benchmarking.comparison import Comparison, Contest
from vitfast.benchmarking.foreign_model import Unavailable, timm_model
from vitfast.benchmarking.model_comparison import WEIGHT, sample_images
from vitfast.benchmarking.peers import prepare_peer
from vitfast.benchmarking.subject import Subject
from vitfast.benchmarking.work import count_gflop
from vitfast.inference.accelerate import accelerate
from vitfast.models import ImageModel, build_model


def engine_comparison(model_name: str, batch: int, precision: str, peers: list[str]) -> Comparison:
    """The question how fast each engine runs a model in one precision; images and logits are in fp32.

    The peers run timm's model with the same weights, where timm has one, else vitfast's. The arithmetic peak is
    measured beside them; of vitfast the operations count that it does, of the others those of the whole model.

    Args:
        model_name: one of ``vitfast.list_models()``.
        batch: images in a run.
        precision: ``"fp32"``, ``"bf16"``, ``"int8"`` or ``"fp16_32"``.
        peers: keys of ``peers.PEERS``.
    """

    def build() -> Contest:
        torch.compiler.reset()  # models of one class share a limit of recompilations
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            own = build_model(model_name).eval()
        images = sample_images(own, batch)
        fast = accelerate(own, precision)
        reference = _logits(own, images)
        subjects = [_subject("vitfast", lambda: _logits(fast, images), count_gflop(lambda: _logits(fast, images)))]
        foreign, left_out = _foreign(own), {}
        for name in peers:
            try:
                subjects.append(_subject(name, prepare_peer(name, foreign, images, precision)))
            except Unavailable as reason:
                left_out[name] = str(reason)
        peak = arithmetic_peak(precision)
        return Contest(
            subjects=subjects if peak is None else [*subjects, peak],
            reference=lambda: reference,
            reference_name="vitfast's source in fp32",
            left_out=left_out,
            images=batch,
            gflop=count_gflop(lambda: _logits(own, images)),
        )

    return Comparison(
        mode="engines",
        title=f"{model_name}, batch {batch}, {precision}, engines",
        labels={"model": model_name, "batch": batch},
        precision=precision,
        weight=2 * WEIGHT,
        build=build,
    )


def _foreign(own: ImageModel) -> nn.Module:
    """What the peers run: what people have."""
    try:
        return timm_model(own)
    except Unavailable:
        return own


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        logits = model(images)
    return logits if isinstance(logits, Tensor) else joined(logits)


def _subject(name: str, run: Callable[[], Tensor], gflop: float | None = None) -> Subject:
    def output() -> Tensor:
        logits = run()
        return logits if isinstance(logits, Tensor) else joined(logits)

    return Subject(name, run=run, output=output, gflop=gflop)
