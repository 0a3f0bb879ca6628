"""ConViT: vitfast's beside timm's, and beside the DeiT of the same size, which it should cost little more than."""

from __future__ import annotations

import torch
from torch import nn

from vitfast.api import create_model
from vitfast.benchmarking.comparison import Comparison, Contest
from vitfast.benchmarking.model_comparison import DTYPES, WEIGHT, inference_subject, logits, sample_images
from vitfast.benchmarking.subject import Subject
from vitfast.errors import UserError

SIZES = ("tiny", "small", "base")


def convit_comparison(size: str, batch: int, precision: str, device: torch.device) -> Comparison:
    """The question what gated positional attention costs: ConViT of vitfast and of timm, and vitfast's DeiT.

    The speed of a row is given against the fastest other one, which is the DeiT: ``0.80x`` is 1.25 times its time.

    Args:
        size: one of ``SIZES``.
        batch: images in a run.
        precision: a key of ``DTYPES``.
        device: where it runs.

    Raises:
        UserError: there is no such size.
    """
    if size not in SIZES:
        raise UserError(f"size={size}: ConViT and DeiT have the sizes {', '.join(SIZES)}")

    def build() -> Contest:
        own, foreign = _build_convits(size, device)
        deit = create_model(f"deit_{size}_patch16_224").to(device).eval()
        images = sample_images(own, batch)
        reference = None if foreign is None else logits(foreign, images)
        models: dict[str, nn.Module] = {"vitfast ConViT": own}
        if foreign is not None:
            models["timm ConViT"] = foreign
        inputs = images.to(DTYPES[precision])
        for model in (*models.values(), deit):
            model.to(DTYPES[precision])
        return Contest(
            subjects=[
                *(inference_subject(name, model, inputs) for name, model in models.items()),
                Subject("vitfast DeiT", run=lambda: logits(deit, inputs)),
            ],
            reference=None if reference is None else lambda: reference,
            reference_name="timm in fp32" if reference is not None else "",
            left_out={} if foreign is not None else {"timm ConViT": "not installed: pip install timm"},
            images=batch,  # no gflop: the DeiT has others
        )

    return Comparison(
        mode="inference",
        title=f"convit_{size} beside deit_{size}_patch16_224, batch {batch}, {precision}",
        labels={"model": f"convit_{size}", "batch": batch},
        precision=precision,
        weight=WEIGHT,
        build=build,
    )


def _build_convits(size: str, device: torch.device) -> tuple[nn.Module, nn.Module | None]:
    """Builds vitfast's and timm's ConViT with the same random weights, in fp32 and evaluation mode; None: no timm."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        own = create_model(f"convit_{size}").to(device).eval()
        try:
            import timm
        except ImportError:
            return own, None
        foreign = timm.create_model(f"convit_{size}")
    foreign.load_state_dict(own.state_dict())
    return own, foreign.to(device).eval()
