"""The tokens-to-token module of accelerated models: with its operators and without, image by image and together."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

import vitfast
from support.accelerable import accelerable, sample_images
from vitfast.inference.cpu import cpu_backend
from vitfast.inference.cpu.packed_layers import PackedSplitLinear
from vitfast.inference.ir import Precision
from vitfast.inference.modules.attention import PerformerAttention
from vitfast.inference.modules.patches import SplitLinear
from vitfast.inference.modules.tokens_to_token import TokensToToken
from vitfast.ops.library import has_kernel

KINDS = ["vitfast: t2t", "vitfast: t2t, transformer", "vitfast: dvt over t2t"]
# an operand next to a boundary may be rounded the other way
STEPS: dict[Precision, float] = {"fp32": 1e-5, "bf16": 2e-2, "fp16_32": 2e-3, "int8": 5e-2}


def splits(model: torch.nn.Module) -> list[SplitLinear]:
    return [part for part in model.modules() if isinstance(part, SplitLinear)]


def logits(result: Tensor | Sequence[Tensor]) -> Tensor:
    """Of all exits, where a model has several."""
    return result if isinstance(result, Tensor) else torch.cat(tuple(result))


@pytest.mark.parametrize("precision", STEPS)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_without_the_operators_it_is_the_same(kind: str, precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    model = accelerable(kind)
    images = sample_images(model)
    expected = vitfast.accelerate(model, precision)
    assert all(isinstance(split, PackedSplitLinear) == has_kernel("packed", "cpu") for split in splits(expected))
    monkeypatch.delitem(cpu_backend._PACKED, SplitLinear)
    monkeypatch.delitem(cpu_backend._PACKED, PerformerAttention)
    plain = vitfast.accelerate(model, precision)
    assert splits(plain)
    assert not any(isinstance(split, PackedSplitLinear) for split in splits(plain))
    actual, wanted = logits(plain(images)), logits(expected(images))
    assert (actual - wanted).norm() / wanted.norm() < STEPS[precision]


@pytest.mark.skipif(not has_kernel("packed", "cpu"), reason="pure PyTorch: there are no packed operators")
@pytest.mark.parametrize("precision", STEPS)
@torch.no_grad()
def test_images_mixed_together_change_no_bit(precision: Precision) -> None:
    source = accelerable("vitfast: t2t")
    images = sample_images(source)
    images = torch.cat([images, images.flip(2), images.flip(3)])
    (tokens,) = (part for part in vitfast.accelerate(source, precision).modules() if isinstance(part, TokensToToken))
    first = tokens.first.split.grid_size(images.shape[-1]) ** 2
    results = []
    for at_once in (1, 2, len(images)):
        tokens.tokens_at_once = first * at_once
        results.append(tokens(images))
    assert torch.equal(results[1], results[0])
    assert torch.equal(results[2], results[0])
