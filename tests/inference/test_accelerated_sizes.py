"""Accelerated models against float64 by the tolerance rule, at the sizes where kernels change their path."""

from __future__ import annotations

import copy
import functools
import warnings
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import vitfast
from support.accelerable import BUILDERS, accelerable, sample_images, shake, tensors_of
from vitfast.models import build_model
from vitfast.ops.tolerance import FORWARD_FACTOR, assert_as_accurate

PRECISIONS = ("fp32", "bf16", "fp16_32", "int8")
TOKENS = (1, 2, 5, 16, 17, 50, 63, 64, 65, 196, 197, 198, 256, 257, 577, 1025)
BATCHES = (0, 1, 2, 7, 8, 65)
HYBRID = "vitfast: hybrid"
FAMILIES = (
    "vitfast: vit",
    "vitfast: distilled",
    "vitfast: convit",
    "vitfast: t2t",
    "vitfast: t2t, transformer",
    "vitfast: dvt over deit",
    "vitfast: dvt over t2t",
    "vitfast: dvt, convolutions",
    HYBRID,
)
# families whose bits do not depend on other images; the others run torch GEMMs between packed ones
PACKED_THROUGHOUT = ("vitfast: vit", "vitfast: distilled")
# relative L2 distance; an operand beside a boundary is rounded the other way
SUMS_IN_ANOTHER_ORDER = {"fp32": 1e-6, "bf16": 2e-3, "fp16_32": 2e-4, "int8": 1e-2}


@functools.cache
def model_of(kind: str) -> nn.Module:
    """One of the families, small."""
    if kind in BUILDERS:
        return accelerable(kind)
    fields: dict[str, Any] = {"img_size": 32, "resnet_layers": (1,), "resnet_width": 32, "patch_size": 2}
    return shake(
        lambda: build_model("vit_tiny_r_s16_p8_224", **fields, embed_dim=32, num_heads=2, depth=2, num_classes=7)
    )


@functools.cache
def model_with(tokens: int) -> nn.Module:
    """A model whose blocks see so many tokens: a class token and a row of patches; a single patch for one."""
    patches = max(tokens - 1, 1)
    return shake(
        lambda: timm.create_model(
            "vit_tiny_patch16_224",
            img_size=(2, 2 * patches),
            patch_size=2,
            embed_dim=32,
            num_heads=2,
            depth=2,
            num_classes=64,
            class_token=tokens > 1,
            global_pool="token" if tokens > 1 else "avg",
        )
    )


def in_same_precision(source: nn.Module, precision: str) -> nn.Module:
    """The model as PyTorch runs it with operands of this precision."""
    rounded = copy.deepcopy(source)
    if precision == "bf16":
        return rounded.bfloat16()
    if precision != "fp32":
        vitfast.quantize_(rounded, {"fp16_32": vitfast.FP16_32Config(), "int8": vitfast.Int8Config()}[precision])
    return rounded


def results(model: Any, images: Tensor, precision: str) -> list[Tensor]:
    images = images.bfloat16() if precision == "bf16" else images
    return [one.float() for one in tensors_of(model(images))]


def accelerated(kind: str, precision: str) -> nn.Module:
    with warnings.catch_warnings():
        # the convolutions of a hybrid fall back, with a warning
        warnings.simplefilter("ignore" if kind == HYBRID else "error")
        return vitfast.accelerate(model_of(kind), precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tokens", TOKENS)
@torch.no_grad()
def test_every_number_of_tokens(tokens: int, precision: str) -> None:
    source = model_with(tokens)
    images = torch.randn(2, 3, *source.patch_embed.img_size, generator=torch.Generator().manual_seed(tokens))
    assert source._pos_embed(source.patch_embed(images)).shape[1] == tokens
    exact = copy.deepcopy(source).double()
    rounded, fast = in_same_precision(source, precision), vitfast.accelerate(source, precision)
    assert fast.report().fell_back == ()
    given = images.bfloat16() if precision == "bf16" else images
    for of in (lambda model, x: model(x), lambda model, x: model.forward_features(x)):
        assert_as_accurate(
            of(fast, images),
            of(rounded, given).float(),
            of(exact, images.double()),
            factor=FORWARD_FACTOR,
            name=f"{precision}, {tokens} tokens",
        )


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", FAMILIES)
@torch.no_grad()
def test_every_family_and_batch(kind: str, precision: str) -> None:
    source = model_of(kind)
    images = sample_images(source, max(BATCHES))
    fast = accelerated(kind, precision)
    found = results(fast, images, "")
    few = images[:8]
    exact = tensors_of(copy.deepcopy(source).double()(few.double()))
    same = results(in_same_precision(source, precision), few, precision)
    for index, (one, *others) in enumerate(zip(found, same, exact, strict=True)):
        assert_as_accurate(one[: len(few)], *others, factor=FORWARD_FACTOR, name=f"{kind}, {precision}, result {index}")
    for batch in BATCHES:
        for one, of_all in zip(results(fast, images[:batch], ""), found, strict=True):
            assert one.shape == (batch, 7)
            if kind in PACKED_THROUGHOUT:
                assert torch.equal(one, of_all[:batch]), f"{batch} images"
            else:
                difference = (one - of_all[:batch]).norm()
                assert difference <= SUMS_IN_ANOTHER_ORDER[precision] * of_all.norm(), f"{batch} images"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", FAMILIES)
def test_non_finite_values_stay_in_their_image(kind: str, precision: str) -> None:
    fast = accelerated(kind, precision)
    images = sample_images(model_of(kind), 7)
    with torch.inference_mode():
        expected = results(fast, images, "")
        others = [0, 1, 2, 4, 5, 6]
        for bad in (torch.nan, torch.inf, -torch.inf):
            broken = images.clone()
            broken[3, 1, 9, 9] = bad
            for one, whole in zip(results(fast, broken, ""), expected, strict=True):
                assert torch.equal(one[others], whole[others]), bad
                assert not one[3].isfinite().any(), bad
