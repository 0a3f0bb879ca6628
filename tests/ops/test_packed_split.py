"""GEMMs of overlapping patches with packed weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from support.packed_cases import OPS, PRECISIONS, Window, check_split, draw, on_threads, packed_split
from vitfast.ops.library import has_kernel

if not has_kernel("packed", "cpu"):
    pytest.skip("pure PyTorch: there are no packed operators", allow_module_level=True)

NO_NORM = (None, None, None)
# images' sizes, their patches
CASES = {
    "overlapping": ((2, 3, 30, 30), Window((7, 7), (4, 4), (2, 2))),
    "lines of a vector and a little": ((2, 2, 40, 37), Window((18, 17), (6, 5), (1, 1))),
    "of different height and width": ((3, 5, 13, 9), Window((3, 5), (2, 1), (1, 2))),
    "padding beyond stride and patch": ((1, 2, 6, 7), Window((2, 3), (1, 2), (5, 4))),
    "stride beyond the patch": ((2, 3, 17, 12), Window((2, 3), (5, 7), (0, 1))),
    "of one pixel": ((2, 70, 5, 6), Window((1, 1), (1, 1))),
    "of one pixel, padded": ((2, 4, 5, 6), Window((1, 1), (2, 3), (1, 1))),
    "larger than the image": ((3, 2, 4, 3), Window((6, 8), (1, 1), (1, 3))),
    "one, the image": ((2, 3, 9, 11), Window((9, 11), (1, 1))),
    "of tokens, channels last": ((3, 1, 7, 7 * 20), Window((3, 3 * 20), (2, 2 * 20), (1, 20))),
    "of several groups of inputs": ((1, 20, 13, 13), Window((8, 8), (5, 5), (2, 2))),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CASES)
def test_split(case: str, precision: str) -> None:
    sizes, window = CASES[case]
    check_split(draw(*sizes), window, 70, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("pixels", [torch.uint8, torch.bfloat16], ids=str)
def test_split_of_narrow_pixels(pixels: torch.dtype, precision: str) -> None:
    images = (torch.rand(2, 3, 26, 35, generator=torch.Generator().manual_seed(0)) * 255).to(pixels)
    check_split(images, Window((5, 18), (3, 4), (1, 2)), 70, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_number_of_threads_and_the_batch_change_no_bit(precision: str) -> None:
    images, window, weight = draw(5, 3, 21, 21), Window((7, 7), (4, 4), (2, 2)), draw(70, 147)
    norm = (1 + draw(147, scale=0.1), draw(147), 1e-5)
    results = on_threads((1, 2, 3, 16), lambda: packed_split(images, window, norm, weight, None, precision))
    single = packed_split(images[3:4], window, norm, weight, None, precision)
    for result in results[1:]:
        assert torch.equal(result, results[0])
    assert torch.equal(single, results[0][3:4])


def test_images_may_lie_anyhow() -> None:
    window, weight = Window((3, 5), (2, 3), (1, 2)), draw(70, 60)
    wide = draw(2, 8, 12, 20)
    views = {
        "channels last": wide[:, :4].contiguous(memory_format=torch.channels_last),
        "some channels": wide[:, 2:6],
        "a part": wide[:, :4, 1:9, 3:17],
        "transposed": wide[:, :4].transpose(2, 3),
        "expanded": wide[:1, :4].expand(3, -1, -1, -1),
        "one channel for all": wide[:, :1].expand(-1, 4, -1, -1),
    }
    for name, view in views.items():
        expected = packed_split(view.clone().contiguous(), window, NO_NORM, weight, None, "fp32")
        assert torch.equal(packed_split(view, window, NO_NORM, weight, None, "fp32"), expected), name


@pytest.mark.parametrize("norm", [NO_NORM, (None, None, 1e-5)], ids=["plain", "normalized"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_nan_stays_in_the_patches_that_hold_it(precision: str, norm: tuple[None, None, float | None]) -> None:
    """Whole vectors are read behind the lines of a patch: nothing of that may remain."""
    window, weight = Window((7, 7), (4, 4), (2, 2)), draw(70, 147)
    for place in ((0, 0, 0, 0), (0, 2, 13, 14), (1, 0, 5, 20), (1, 2, 20, 20)):
        images = draw(2, 3, 21, 21)
        expected = packed_split(images, window, norm, weight, None, precision)
        images[place] = torch.nan
        hit = window.rows(images).isnan().any(-1)
        assert 0 < hit.sum() < hit.numel()
        out = packed_split(images, window, norm, weight, None, precision)
        assert out[hit].isnan().all()
        assert torch.equal(out[~hit], expected[~hit])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_images(precision: str) -> None:
    out = packed_split(torch.zeros(0, 3, 9, 9), Window((3, 3), (2, 2), (1, 1)), NO_NORM, draw(70, 27), None, precision)
    assert out.shape == (0, 25, 70)


def test_the_fake_kernel_and_the_operations() -> None:
    images, packed = draw(2, 3, 13, 9), OPS.pack_weight(draw(70, 45), "fp32")
    arguments = ((3, 5), (2, 1), (1, 2), draw(45), draw(45), 1e-5, packed, draw(70), 70, "fp32")
    torch.library.opcheck(OPS.packed_split_linear.default, (images, *arguments))
    with FlopCounterMode(display=False) as counter:
        out = OPS.packed_split_linear(images, *arguments)
    assert out.shape == (2, 7 * 9, 70)
    assert counter.get_total_flops() == 2 * 2 * 7 * 9 * 45 * 70


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": torch.zeros(3, 9, 9)}, "images must be \\[B, I, H, W\\]"),
        ({"images": torch.zeros(2, 3, 9, 9, dtype=torch.int32)}, "images must be uint8, float32 or bfloat16"),
        ({"images": torch.zeros(2, 4, 9, 9)}, "packed is not a weight"),
        ({"patch": (0, 3)}, "patch must be a height and a width of at least 1"),
        ({"patch": (3, 3, 3)}, "patch must be"),
        ({"patch": (3, 12)}, "patch must fit into the padded images"),
        ({"stride": (2, 0)}, "stride must be a height and a width of at least 1"),
        ({"padding": (-1, 0)}, "padding must be a height and a width of at least 0"),
        ({"padding": (2**40, 0)}, "padding must be"),
        ({"gamma": torch.ones(27), "eps": None}, "gamma and beta need eps"),
        ({"gamma": torch.ones(26)}, "gamma must be"),
        ({"beta": torch.ones(27).double()}, "beta must be"),
        ({"bias": torch.ones(7)}, "bias must be"),
        ({"precision": "fp8"}, "precision must be fp32"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_arguments_are_rejected(changed: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "images": torch.zeros(2, 3, 9, 9),
        "patch": (3, 3),
        "stride": (2, 2),
        "padding": (1, 1),
        "gamma": None,
        "beta": None,
        "eps": 1e-5,
        "packed": OPS.pack_weight(draw(70, 27), "fp32"),
        "bias": None,
        "n": 70,
        "precision": "fp32",
    }
    with pytest.raises(RuntimeError, match=message):
        OPS.packed_split_linear(**{**arguments, **changed})
