"""Tables of architectures: parameters and multiply-adds, counted on the models."""

from __future__ import annotations

from contextlib import nullcontext

import timm
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import vitfast
from vitfast.models import build_model


def model_table(*patterns: str) -> str:
    """Lists the architectures that match one of the patterns, with the image size that they were published with."""
    rows = ["| model | parameters | GMACs | pixels | timm's weights |", "|---|---:|---:|---:|---|"]
    for name in sorted({name for pattern in patterns for name in vitfast.list_models(pattern)}):
        parameters, gmacs, pixels = count(name)
        rows.append(f"| `{name}` | {parameters / 1e6:,.1f} M | {gmacs:,.4g} | {pixels} | {_license(name)} |")
    return "\n".join(rows)


def _license(name: str) -> str:
    """The licence that timm records for its default weights of that name; empty if it has none."""
    try:
        settings = timm.get_pretrained_cfg(name)
    except RuntimeError:  # timm has no such model
        return ""
    return (settings and settings.license) or ""


def count(name: str) -> tuple[int, float, int]:
    """Counts parameters and 1e9 multiply-adds of GEMMs, convolutions and attention for one image; computes nothing."""
    is_performer = "t2t" in name  # it has no implementation for meta tensors
    with torch.device("cpu" if is_performer else "meta"), torch.no_grad():
        model = build_model(name).eval().requires_grad_(False)
        pixels = model.fields.img_size
        shapes_only = FakeTensorMode(allow_non_fake_inputs=True) if is_performer else nullcontext()
        with shapes_only, FlopCounterMode(display=False) as counter:
            model(torch.empty(1, model.fields.in_chans, pixels, pixels))
    return sum(one.numel() for one in model.parameters()), counter.get_total_flops() / 2e9, pixels
