"""Sums of float16 products as a matrix unit makes them: models of the unit, and probes that tell which one a unit is.

The experiments are of the kind of Fasi, Higham, Mikaitis and Pranesh, "Numerical behavior of NVIDIA tensor cores"
(PeerJ Computer Science 7:e330, 2021). The models are those of Khattak and Mikaitis, "Accurate models of NVIDIA tensor
cores" (arXiv 2512.07004, 2025) and, but for ``least_exponent``, of Xie et al., "MMA-Sim" (arXiv 2511.10909, 2025).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import astuple, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from support import simt
from vitfast.formats import FloatFormat
from vitfast.ops import reference

Mma = Callable[[Tensor, Tensor, Tensor], Tensor]  # a [T, 16, 16], b [T, 16, 8], c [T, 16, 8] -> d [T, 16, 8], float16


@dataclass(frozen=True)
class Fp16Accumulation:
    """How a unit adds 16 products of float16 to a float16: exactly, in steps, each rounded to the nearest float16.

    Attributes:
        terms: products in a step.
        bits: that an addend keeps below the largest one's exponent (a product's is the sum of its factors'); what lies
            lower is cut off.
        least_exponent: that the largest one counts as, at least.
    """

    terms: int
    bits: int
    least_exponent: int

    def for_emulation(self) -> str:
        """The model as the environment variable ``SIMT_FP16_ACCUMULATION``."""
        return ",".join(map(str, astuple(self)))

    def mma(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """Computes tiles: an ``Mma``."""
        return self._add(c.double(), a.double().unsqueeze(-2), b.double().mT.unsqueeze(-3)).half()

    def product(self, x: Tensor, w: Tensor, chunk: int, *, rounds: bool) -> Tensor:
        """Computes ``x wᵀ`` as ``matmul_accumulate(unit="tensor_core")`` does.

        Args:
            x: ``[M, K]``, float16.
            w: ``[N, K]``.
            chunk: products that are summed before they are added to the accumulator.
            rounds: the accumulator, to float16.

        Returns:
            ``[M, N]``, float32.
        """
        accumulator = torch.zeros(len(x), len(w), device=x.device)
        for begin in range(0, x.shape[-1], chunk):
            parts = (whole[:, begin : begin + chunk].double() for whole in (x, w))
            rows, columns = (F.pad(part, (0, -part.shape[-1] % 16)) for part in parts)
            nothing = torch.zeros_like(accumulator, dtype=torch.float64)
            accumulator = accumulator + self._add(nothing, rows[:, None], columns[None]).float()
            if rounds:
                accumulator = accumulator.half().float()
        return accumulator

    def _add(self, total: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Adds products along the last dimension; numbers of float16, in float64."""
        for first in range(0, a.shape[-1], self.terms):
            total = self._step(total, a[..., first : first + self.terms], b[..., first : first + self.terms])
        return total

    def _step(self, total: Tensor, a: Tensor, b: Tensor) -> Tensor:
        addends = torch.cat([a * b, total.unsqueeze(-1)], -1)
        exponents = torch.cat([_exponent(a) + _exponent(b), _exponent(total).unsqueeze(-1)], -1)
        largest = exponents.where(addends != 0, self.least_exponent).amax(-1).clamp(min=self.least_exponent)
        unit = torch.ldexp(torch.ones_like(total), largest - self.bits)
        exact = (addends / unit.unsqueeze(-1)).trunc().sum(-1) * unit
        return reference.quantize_float(exact, FloatFormat.fp16(), "nearest_even", "inf")


def _exponent(numbers: Tensor) -> Tensor:
    """Of numbers of float16: a subnormal one's is that of the smallest normal one."""
    return torch.frexp(numbers.where(numbers.isfinite(), 1.0)).exponent.clamp(min=-13) - 1


AMPERE = Fp16Accumulation(terms=8, bits=24, least_exponent=-20)  # and Ada
HOPPER = Fp16Accumulation(terms=16, bits=25, least_exponent=-21)  # and Blackwell
DOCUMENTED = {8: AMPERE, 9: HOPPER, 10: HOPPER, 12: HOPPER}  # by the major number of the compute capability


def documented_model(variant: str) -> Fp16Accumulation:
    """What a variant of a program computes by: the emulation's default, or what is documented of the GPU."""
    return DOCUMENTED[torch.cuda.get_device_capability()[0]] if variant == "cuda" else HOPPER


def mma_of(variant: str) -> Mma:
    """The instruction itself, in a program."""

    def mma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        outputs = {"d": (tuple(c.shape), torch.float16)}
        options = {"kernel": "fp16_accumulation", "tiles": len(a)}
        return simt.run("primitives", {"a": a, "b": b, "c": c}, outputs, options, variant=variant)["d"]

    return mma


# --- probes ---

Products = list[tuple[float, float]]
NOTHING = (0.0, 0.0)


def probe(mma: Mma, sums: list[tuple[float, Products]]) -> list[float]:
    """Returns start + products for several sums, a tile for each; the products stand at k = 0, 1 and so on."""
    a, b, c = torch.zeros(len(sums), 16, 16), torch.zeros(len(sums), 16, 8), torch.zeros(len(sums), 16, 8)
    for tile, (start, products) in enumerate(sums):
        c[tile, 0, 0] = start
        for k, (left, right) in enumerate(products):
            a[tile, 0, k], b[tile, k, 0] = left, right
    halves = [numbers.half() for numbers in (a, b, c)]
    assert all(torch.equal(half.float(), numbers) for half, numbers in zip(halves, (a, b, c), strict=True))
    return mma(*halves)[:, 0, 0].tolist()


def characterize(mma: Mma) -> Fp16Accumulation:
    """Measures which of these models a unit is.

    Raises:
        AssertionError: it is none of them.
    """
    terms, bits = _step(mma), _kept_bits(mma)
    _check_what_models_share(mma, terms, bits)
    return Fp16Accumulation(terms, bits, bits - _lowest_bit(mma))


def _step(mma: Mma) -> int:
    """2048 + 0.25 - 2048 is 0.25 within a step, and else 0."""
    first = [(0.25, [(2048.0, 1.0), *[NOTHING] * (k - 1), (-2048.0, 1.0)]) for k in range(1, 16)]
    is_same = [sum == 0.25 for sum in probe(mma, first)]
    terms = 1 + sum(is_same)
    assert is_same == [k < terms for k in range(1, 16)], f"shares a step with k = 0, from k = 1 on: {is_same}"
    for begin in range(terms, 16, terms):
        large, small = [NOTHING] * begin + [(2048.0, 1.0)], (0.25, 1.0)
        sums = [(0.0, [*large, small, *[NOTHING] * (k - 2), (-2048.0, 1.0)]) for k in range(2, terms)]
        assert probe(mma, sums) == [0.25] * len(sums), f"k = {begin} begins no step of {terms}"
    return terms


def _kept_bits(mma: Mma) -> int:
    """How far below two numbers that cancel a third one is still there."""
    depths = range(10, 34)
    sums = [(0.0, [(32.0, 32.0), (-32.0, 32.0), (2.0**-10, 2.0 ** (20 - depth))]) for depth in depths]
    is_kept = [sum != 0.0 for sum in probe(mma, sums)]
    bits = depths[0] - 1 + sum(is_kept)
    assert is_kept == [depth <= bits for depth in depths], f"kept, from {depths[0]} bits below on: {is_kept}"
    return bits


def _lowest_bit(mma: Mma) -> int:
    """The largest j for which 2^-j turns 2^-25, a tie between zero and the smallest number."""
    lowest = range(26, 49)
    sums = [(0.0, [(2.0**-12, 2.0**-13), (2.0 ** -(j // 2), 2.0 ** (j // 2 - j))]) for j in lowest]
    is_kept = [sum != 0.0 for sum in probe(mma, sums)]
    last = lowest[0] - 1 + sum(is_kept)
    assert is_kept == [j <= last for j in lowest], f"seen, from 2^-{lowest[0]} on: {is_kept}"
    return last


def _check_what_models_share(mma: Mma, terms: int, bits: int) -> None:
    last = 2.0 ** (20 - bits)  # the last bit kept beside 2^10, times 2^10
    large = [(32.0, 32.0), (-32.0, 32.0)]
    expected: list[tuple[str, float, Products, float]] = [
        ("what lies lower is cut off", 0.0, [*large, (2.0**-10, 1.75 * last)], 2.0**-10 * last),
        ("below zero, too", 0.0, [*large, (-(2.0**-10), 1.75 * last)], -(2.0**-10) * last),
        ("before the sum", 0.0, [*large, (2.0**-10, 0.5 * last), (2.0**-10, 0.5 * last)], 0.0),
        ("a product's exponent", 0.0, [(48.0, 48.0), (-48.0, 48.0), (2.0**-10, last)], 2.0**-10 * last),
        ("products are exact", -4.0, [(2.0 + 2.0**-9, 2.0 - 2.0**-9)], -(2.0**-18)),
        ("k ascending", -2048.0, [(0.75, 1.0), *[NOTHING] * 7, (2048.0, 1.0)], 0.75 if terms == 16 else 1.0),
        ("subnormal factors", 0.0, [(2.0**-24, 1024.0)], 2.0**-14),
        ("subnormal sums", 0.0, [(2.0**-14, 2.0**-10)], 2.0**-24),
        ("a subnormal start", 3 * 2.0**-24, [(-(2.0**-14), 2.0**-9)], 2.0**-24),
        ("beyond the largest number on the way", 65504.0, [(65504.0, 1.0), (-65504.0, 1.0)], 65504.0),
        ("nearly an overflow", 65504.0, [(15.0, 1.0)], 65504.0),
        ("overflow", 65504.0, [(16.0, 1.0)], math.inf),
        ("overflow below zero", -65504.0, [(-16.0, 1.0)], -math.inf),
        ("infinity", 1.0, [(math.inf, 2.0)], math.inf),
    ]
    for sign in (1.0, -1.0):  # between 2048 and 4096 numbers are two apart
        for start, added, nearest in ((2048.0, 1.0, 2048.0), (2048.0, 1.5, 2050.0), (2050.0, 1.0, 2052.0)):
            expected.append(("nearest, ties to even", sign * start, [(sign * added, 1.0)], sign * nearest))
    sums = probe(mma, [(start, products) for _, start, products, _ in expected])
    wrong = [
        f"{name}: {start} + {products} is {found}, not {value}"
        for (name, start, products, value), found in zip(expected, sums, strict=True)
        if found != value
    ]
    invalid = [(math.inf, [(-math.inf, 1.0)]), (0.0, [(math.inf, 0.0)])]
    wrong += [f"{sum} is {found}" for sum, found in zip(invalid, probe(mma, invalid), strict=True) if found == found]
    assert not wrong, "; ".join(wrong)


# --- random tiles ---

TILES = ("normal", "wide", "cancelling", "ties", "smallest", "bits")


def random_tiles(kind: str, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draws a [count, 16, 16], b [count, 16, 8] and c [count, 16, 8].

    Args:
        kind: ``"normal"``; ``"wide"``: of very different sizes; ``"cancelling"``: sums far smaller than what is summed;
            ``"ties"``: small integers beside a large c; ``"smallest"``: ties between the smallest numbers, and products
            far below them; ``"bits"``: any bits, infinities and NaN among them.
        count: how many tiles.
    """
    shapes = ((count, 16, 16), (count, 16, 8), (count, 16, 8))
    if kind == "bits":
        a, b, c = (torch.randint(-(2**15), 2**15, shape).short().view(torch.float16) for shape in shapes)
        return a, b, c

    def sizes(x: Tensor, smallest: int, largest: int) -> Tensor:
        return torch.exp2(torch.randint(smallest, largest + 1, x.shape))

    is_whole = kind in ("ties", "smallest")
    a, b, c = (torch.randint(-3, 4, shape).float() if is_whole else torch.randn(shape) for shape in shapes)
    if kind == "wide":
        a, b, c = (x * sizes(x, -18, 6) for x in (a, b, c))
    if kind == "cancelling":  # three quarters of each step of 8 cancel
        a, b = a.unflatten(2, (2, 8)), b.unflatten(1, (2, 8))
        a[..., 3:6], b[:, :, 3:6] = -a[..., :3], b[:, :, :3]
        a[..., 6:] *= sizes(a[..., 6:], -14, 0)
        a, b, c = a.flatten(2), b.flatten(1, 2), c * sizes(c, -14, 0)
    if kind == "ties":
        a, c = a / 2, torch.randint(-1024, 1025, c.shape) * 2.0
    if kind == "smallest":
        a[..., ::2], b[:, ::2], c = a[..., ::2] * 2.0**-12, b[:, ::2] * 2.0**-13, c * 2.0**-24
        a[..., 1::2] *= 2.0**-24
        b[:, 1::2] *= sizes(b[:, 1::2], -24, -18)
    return a.half(), b.half(), c.half()


def differing(found: Tensor, expected: Tensor) -> int:
    """How many results differ; a NaN equals any other."""
    return int((~((found == expected) | (found.isnan() & expected.isnan()))).sum())
