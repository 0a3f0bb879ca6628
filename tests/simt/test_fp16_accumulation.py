"""Float16 sums of the matrix unit: models of it in the emulation, and the probes that identify a GPU's.

On a GPU ``benchmarks/gpu.sh test`` runs the last tests here; ``pytest -s -m cuda tests/simt/test_fp16_accumulation.py``
prints what was measured.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from support.fp16_accumulation import (
    AMPERE,
    DOCUMENTED,
    HOPPER,
    TILES,
    Fp16Accumulation,
    Mma,
    characterize,
    differing,
    mma_of,
    random_tiles,
)

# where no product has a bit that the least exponent cuts off: MMA-Sim
WITHOUT_LEAST = (Fp16Accumulation(8, 24, -24), Fp16Accumulation(16, 25, -23))
MODELS = (
    AMPERE,
    HOPPER,
    *WITHOUT_LEAST,
    Fp16Accumulation(4, 23, -19),
    Fp16Accumulation(16, 24, -20),
    Fp16Accumulation(8, 25, -17),
)
TILES_OF_A_KIND = 2**18  # each of 128 sums; more than 10^6 in all


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_the_emulation_computes_by_the_model(model: Fp16Accumulation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMT_FP16_ACCUMULATION", model.for_emulation())
    emulated = mma_of("plain")
    for kind in TILES:
        tiles = random_tiles(kind, 40)
        assert differing(emulated(*tiles), model.mma(*tiles)) == 0, kind
    assert characterize(emulated) == model


def test_the_emulation_is_a_hopper_by_itself(simt_variant: str) -> None:
    if simt_variant == "cuda":
        pytest.skip("a device is no emulation")
    tiles = random_tiles("bits", 4)
    assert differing(mma_of(simt_variant)(*tiles), HOPPER.mma(*tiles)) == 0


def test_random_tiles_tell_models_apart() -> None:
    drawn = [random_tiles(kind, 200) for kind in TILES]
    for one, other in itertools.combinations(MODELS, 2):
        assert any(differing(one.mma(*tiles), other.mma(*tiles)) for tiles in drawn), (one, other)


def _shortened(mma: Mma) -> Mma:
    return lambda a, b, c: (mma(a, b, c).view(torch.int16) & ~1).view(torch.float16)


def _without_subnormals(mma: Mma) -> Mma:
    def flushed(x: Tensor) -> Tensor:
        return x.where(x.abs() >= 2.0**-14, 0.0)

    return lambda a, b, c: mma(flushed(a), flushed(b), flushed(c))


def _saturating(mma: Mma) -> Mma:
    return lambda a, b, c: mma(a, b, c).clamp(-65504.0, 65504.0)


def _steps_backwards(mma: Mma) -> Mma:
    return lambda a, b, c: mma(a.roll(8, 2), b.roll(8, 1), c)


@pytest.mark.parametrize(
    ("other", "found"),
    [
        (_shortened, "nearest, ties to even"),
        (_without_subnormals, "subnormal factors"),
        (_saturating, "overflow"),
        (_steps_backwards, "k ascending"),
    ],
)
def test_unit_that_matches_no_model_is_reported(other: object, found: str) -> None:
    with pytest.raises(AssertionError, match=found):
        characterize(other(AMPERE.mma))  # type: ignore[operator]


@pytest.mark.cuda
def test_probes_match_the_documented_device() -> None:
    capability = torch.cuda.get_device_capability()
    found = characterize(mma_of("cuda"))
    print(f"\n{torch.cuda.get_device_name()}, compute capability {capability}: {found}")
    assert found == DOCUMENTED.get(capability[0]), "measured, and what docs/internals/cuda_gemm.md says"


@pytest.mark.cuda
@pytest.mark.parametrize("kind", TILES)
def test_one_model_gives_every_bit_of_this_device(kind: str) -> None:
    tiles = random_tiles(kind, TILES_OF_A_KIND)
    found = mma_of("cuda")(*tiles)
    counts = dict.fromkeys(MODELS, 0)
    for part in zip(found.split(8192), *(tensor.split(8192) for tensor in tiles), strict=True):
        on_device, *operands = (tensor.cuda() for tensor in part)
        for model in MODELS:
            counts[model] += differing(on_device, model.mma(*operands))
    print(f"\n{kind}: of {TILES_OF_A_KIND * 128:,} sums differ")
    print("\n".join(f"{count:>14,}  {model}" for model, count in counts.items()))
    assert counts[DOCUMENTED[torch.cuda.get_device_capability()[0]]] == 0, counts
