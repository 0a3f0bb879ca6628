"""Small models with exits, and random statistics of exits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitfast.inference import ExitStatistics
from vitfast.models import DVT, build_model

_SMALL: dict[str, Any] = {"num_classes": 5, "embed_dim": 16, "depth": 1, "num_heads": 2, "reuse_dim": 6}

_DEIT = {"img_size": 24, "patch_sizes": (8, 6, 4), "patch_strides": (8, 6, 4), "patch_paddings": (0, 0, 0)}

# two and three exits, over DeiT and T2T-ViT, with convolutions, and without either reuse
EXIT_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "nano": ("dvt_nano_16", {**_SMALL}),
    "mini": ("dvt_mini_32", {**_SMALL}),
    "deit": ("dvt_deit_small", {**_SMALL, **_DEIT}),
    "t2t": ("dvt_t2t_vit_12", {**_SMALL, "img_size": 56, "token_dim": 8}),
    "convolutions": ("dvt_mini_32", {**_SMALL, "backbone": "conv_vit"}),
    "no feature reuse": ("dvt_nano_16", {**_SMALL, "feature_reuse": False}),
    "no relation reuse": ("dvt_nano_16", {**_SMALL, "relation_reuse": False}),
}


def exit_model(kind: str, **fields: Any) -> DVT:
    """A small model whose exits disagree and differ in confidence, in evaluation mode."""
    name, defaults = EXIT_MODELS[kind]
    torch.manual_seed(0)
    model = build_model(name, **{**defaults, **fields})
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, mean=1.0 if "norm" in key and key.endswith("weight") else 0.0, std=0.3)
    return model.eval()


def random_images(model: DVT, batch: int, seed: int = 0) -> Tensor:
    """Images ``[batch, in_chans, img_size, img_size]`` that fit the model."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, model.in_chans, model.img_size, model.img_size, generator=generator)


def random_statistics(images: int, num_exits: int = 3, *, seed: int = 0, digits: int | None = None) -> ExitStatistics:
    """Returns statistics in which accuracy grows with the exit and with its confidence.

    Args:
        images: how many.
        num_exits: how many.
        seed: of the random numbers.
        digits: round the confidences to so many decimals, so that many are equal.
    """
    generator = torch.Generator().manual_seed(seed)
    ease = torch.rand(images, generator=generator)
    skill = torch.linspace(-1.0, 1.0, num_exits)[:, None]
    confidence = torch.sigmoid(4 * ease - 2 + skill + torch.randn(num_exits, images, generator=generator) / 2)
    if digits is not None:
        confidence = (confidence * 10**digits).round() / 10**digits
    return ExitStatistics(confidence, torch.rand(num_exits, images, generator=generator) < confidence)
