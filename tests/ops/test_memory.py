"""No operator keeps memory: the resident set stays flat over hundreds of forward and backward passes."""

from __future__ import annotations

import pytest

from support.accuracy import run
from support.operators import OPERATORS, Operator
from support.packed_cases import OPS, PRECISIONS, block_parameters, draw, packed_block
from support.resident import STATM, resident_mib
from support.sample import Make
from vitfast.ops.library import has_kernel

CALLS = 250
LEAKED_ELEMENTS = 2**20  # in all calls: a leak of float32 tensors of a sample's size would show as 4 MiB
WARM_UP_CALLS = 50
MIN_NUMEL = 2000
MAX_NUMEL = 60_000
MAX_GROWTH_MIB = 2.0


@pytest.mark.skipif(not STATM.exists(), reason="needs Linux's /proc to read the resident set")
@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_resident_set_does_not_grow(operator: Operator) -> None:
    sample = next((sample for sample in operator.samples(Make()) if MIN_NUMEL < sample.numel < MAX_NUMEL), None)
    assert sample is not None, f"{operator} needs a sample of {MIN_NUMEL} to {MAX_NUMEL} elements"
    for _ in range(WARM_UP_CALLS):
        run(operator.public, sample)
    before = resident_mib()
    calls = max(CALLS, LEAKED_ELEMENTS // sample.numel)
    for _ in range(calls):
        run(operator.public, sample)
    growth = resident_mib() - before
    assert growth < MAX_GROWTH_MIB, f"{sample}: {growth:.1f} MiB more after {calls} calls"


@pytest.mark.slow
@pytest.mark.skipif(not STATM.exists(), reason="needs Linux's /proc to read the resident set")
@pytest.mark.skipif(not has_kernel("packed", "cpu"), reason="pure PyTorch: there are no packed operators")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_packed_operators_keep_nothing(precision: str) -> None:
    """Ten thousand calls: a tensor of any of them that stayed would show as 40 MiB and more."""
    parameters = block_parameters(48, 3, 16, 96, extras=True)
    packed = {name: OPS.pack_weight(parameters[name], precision) for name in ("qkv", "fc1", "fc2")}
    x, images = draw(1, 21, 48), draw(1, 3, 16, 24)
    qkv, prefix = draw(1, 21, 3, 3, 16), draw(1, 144)
    relations, matrix = draw(1, 3, 5, 5), draw(21, 5)

    def call() -> None:
        OPS.packed_linear(x, None, None, None, packed["qkv"], parameters["qkv_bias"], 144, precision, "gelu")
        OPS.packed_linear(x, None, None, 1e-6, packed["fc1"], None, 96, precision, "none")
        OPS.packed_mlp(
            x, None, None, 1e-6, packed["fc1"], None, 96, packed["fc1"], None, packed["fc2"], None, 48, precision,
            "gelu", None, x,
        )  # fmt: skip
        OPS.packed_attention(qkv, 0.25, precision)
        OPS.packed_related_attention(qkv, relations, matrix, 0.25, True)
        OPS.packed_patch_embed(images, packed["qkv"], None, 144, 4, 4, prefix, None, precision)
        OPS.packed_split_linear(images, (4, 4), (2, 2), (1, 1), None, None, 1e-6, packed["qkv"], None, 144, precision)
        OPS.packed_performer(x, prefix[:, :16], 1e-8)
        OPS.unpack_weight(packed["fc1"], 96, 48, precision)
        packed_block(x, parameters, 3, "gelu", precision)

    for _ in range(WARM_UP_CALLS):
        call()
    before = resident_mib()
    for _ in range(40 * CALLS):
        call()
    growth = resident_mib() - before
    assert growth < 2 * MAX_GROWTH_MIB, f"{growth:.1f} MiB more after {40 * CALLS} calls"
