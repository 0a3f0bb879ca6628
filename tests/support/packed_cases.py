"""Calls of the packed operators, compared with float64 by the tolerance rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from support import packed_plain as plain
from vitfast.inference.cpu.packed_layers import position_arguments
from vitfast.inference.ir import RelativeBiasSpec, WindowSpec
from vitfast.inference.modules.position_bias import BiasTables, PositionBias
from vitfast.inference.modules.token_merging import TokenMerging
from vitfast.layers import GridUpsample
from vitfast.layers.rotary import RotaryTables, rotary_tables
from vitfast.layers.token_performer import performer_attention
from vitfast.ops.packed import BlockParameters
from vitfast.ops.tolerance import FORWARD_FACTOR, assert_as_accurate

PRECISIONS = ("fp32", "bf16", "fp16_32", "int8")
OPS = torch.ops.vitfast


def draw(*sizes: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Reproducible normal numbers."""
    generator = torch.Generator().manual_seed(seed + sum(i * s for i, s in enumerate(sizes, 1)))
    return torch.randn(*sizes, generator=generator) * scale


def on_threads(counts: Sequence[int], call: Callable[[], Tensor]) -> list[Tensor]:
    """What a call returns on each number of threads."""
    threads, results = torch.get_num_threads(), []
    try:
        for count in counts:
            torch.set_num_threads(count)
            results.append(call())
    finally:
        torch.set_num_threads(threads)
    return results


def double(value: Tensor | None) -> Tensor | None:
    """In float64."""
    return None if value is None else value.double()


def packed_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    precision: str,
    activation: str = "none",
    scale: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Calls the operator with the arguments of its torch equivalent."""
    packed = OPS.pack_weight(weight, precision)
    return OPS.packed_linear(x, None, None, None, packed, bias, weight.shape[0], precision, activation, scale, residual)


def check_linear(rows: int, inputs: int, outputs: int, precision: str, activation: str, *, with_all: bool) -> None:
    """The operands' rounding is the definition: against the exact product of the rounded operands, as float32."""
    x, weight = draw(rows, inputs), draw(outputs, inputs, scale=inputs**-0.5)
    bias = draw(outputs, seed=1) if with_all else None
    scale = draw(outputs, seed=2) if with_all else None
    residual = draw(rows, outputs, seed=3) if with_all else None
    exact = plain.linear(
        plain.operand(x, precision).double(),
        plain.kept_weight(weight, precision).double(),
        double(bias),
        "exact",
        activation,
        double(scale),
        double(residual),
    )
    actual = packed_linear(x, weight, bias, precision, activation, scale, residual)
    expected = plain.linear(x, weight, bias, precision, activation, scale, residual)
    if activation == "gelu" and precision in ("bf16", "int8"):
        # a polynomial whose error is below half a unit of bfloat16, for results that are rounded to it next
        torch.testing.assert_close(actual.double(), exact, rtol=2**-9, atol=2**-9)
        return
    assert_as_accurate(actual, expected, exact, factor=FORWARD_FACTOR, name=f"{precision} {rows}x{inputs}x{outputs}")


def block_parameters(
    channels: int, heads: int, head_dim: int, hidden: int, *, extras: bool, is_gated: bool = False
) -> dict[str, Tensor]:
    """The parameters of a block; ``extras``: biases and LayerScale."""
    inner = heads * head_dim
    shapes = {
        "qkv": (3 * inner, channels),
        "proj": (channels, inner),
        "fc1": (hidden, channels),
        "fc2": (channels, hidden),
    }
    if is_gated:
        shapes["gate"] = (hidden, channels)
    p = {name: draw(*shape, seed=5 + len(name), scale=shape[1] ** -0.5) for name, shape in shapes.items()}
    for name in ("norm1", "norm2"):
        p[f"{name}_weight"], p[f"{name}_bias"] = 1 + draw(channels, scale=0.1), draw(channels, seed=7, scale=0.1)
    if extras:
        for name, shape in shapes.items():
            p[f"{name}_bias"] = draw(shape[0], seed=8, scale=0.1)
        p["scale1"], p["scale2"] = draw(channels, seed=10), draw(channels, seed=11)
    return p


def packed_block(
    x: Tensor,
    p: dict[str, Tensor],
    heads: int,
    activation: str,
    precision: str,
    positions: RotaryTables | BiasTables | None = None,
    *,
    count: int = 1,
) -> Tensor:
    """Calls the operator with the arguments of its torch equivalent, for ``count`` blocks of the same parameters."""
    return packed_blocks(x, p, heads, activation, precision, [positions] * count)


def packed_blocks(
    x: Tensor,
    p: dict[str, Tensor],
    heads: int,
    activation: str,
    precision: str,
    positions: Sequence[RotaryTables | BiasTables | None],
) -> Tensor:
    """Calls the operator for blocks of the same parameters, each with its positions."""
    parameters, options = block_arguments(p, heads, activation, precision)
    of_blocks = list(chain(*map(position_arguments, positions)))
    is_interleaved = any(isinstance(one, RotaryTables) and one.is_interleaved for one in positions)
    return OPS.packed_blocks(x, parameters * len(positions), of_blocks, *options, is_interleaved=is_interleaved)


def block_arguments(p: dict[str, Tensor], heads: int, activation: str, precision: str) -> tuple[list[Any], list[Any]]:
    """The parameters of a block and the options that follow them."""
    head_dim = p["qkv"].shape[0] // 3 // heads
    packed = {name: OPS.pack_weight(p[name], precision) for name in ("qkv", "proj", "fc1", "gate", "fc2") if name in p}
    parameters = [{**p, **packed}.get(name) for name in BlockParameters._fields]
    return parameters, [1e-6, 1e-6, heads, head_dim, head_dim**-0.5, p["fc1"].shape[0], activation, precision]


def position_options(positions: RotaryTables | BiasTables | None) -> dict[str, Any]:
    """The operators' arguments."""
    if isinstance(positions, RotaryTables):
        return {"rotary": positions.tables, "is_interleaved": positions.is_interleaved}
    return {} if positions is None else positions._asdict()


def draw_rotary(heads: int, tokens: int, head_dim: int, *, is_interleaved: bool) -> RotaryTables:
    """Tables for ``tokens`` patches."""
    return rotary_tables(draw(heads, 2, head_dim // 2), draw(tokens, 2), is_interleaved=is_interleaved)


def draw_windows(
    grid: tuple[int, int], size: tuple[int, int], shift: tuple[int, int], heads: int, *, has_bias: bool = True
) -> BiasTables:
    """Windows of a grid, with a bias for relative positions."""
    table = draw((2 * size[0] - 1) * (2 * size[1] - 1), heads, seed=5)
    bias = RelativeBiasSpec(table, size) if has_bias else None
    windows = WindowSpec(size, shift)
    return PositionBias(bias, windows, heads, grid, torch.device("cpu"))(grid)


def check_block(
    batch: int,
    tokens: int,
    sizes: tuple[int, int, int, int],
    precision: str,
    *,
    extras: bool,
    is_gated: bool = False,
    positions: RotaryTables | BiasTables | None = None,
) -> None:
    """Against the block without roundings: as near as PyTorch with the same roundings."""
    channels, heads, head_dim, hidden = sizes
    p = block_parameters(channels, heads, head_dim, hidden, extras=extras, is_gated=is_gated)
    x = draw(batch, tokens, channels)
    arguments = (heads, "silu" if is_gated else "gelu_tanh" if extras else "gelu")
    exact = plain.block(x.double(), {name: value.double() for name, value in p.items()}, *arguments, "exact", positions)
    expected = plain.block(x, p, *arguments, precision, positions)
    actual = packed_block(x, p, *arguments, precision, positions)
    name = f"{precision} block {batch}x{tokens} {sizes}"
    assert_as_accurate(actual, expected, exact, factor=FORWARD_FACTOR, name=name)


def check_attention(
    batch: int,
    tokens: int,
    heads: int,
    head_dim: int,
    precision: str,
    positions: RotaryTables | BiasTables | None = None,
    *,
    padding: Tensor | None = None,
    cosine: Tensor | None = None,
) -> None:
    """As ``check_block``."""
    qkv, scale = draw(batch, tokens, 3, heads, head_dim), head_dim**-0.5
    exact = plain.attention(qkv.double(), scale, "exact", positions, padding, cosine)
    options = {**position_options(positions), "padding": padding, "cosine": cosine}
    actual = OPS.packed_attention(qkv, scale, precision, **options)
    expected = plain.attention(qkv, scale, precision, positions, padding, cosine)
    name = f"{precision} attention {batch}x{tokens}x{heads}x{head_dim}"
    assert_as_accurate(actual, expected, exact, factor=FORWARD_FACTOR, name=name)


def check_related_attention(batch: int, grids: tuple[int, int] | None, heads: int, head_dim: int) -> None:
    """With relations of a coarser grid, or of the same one, or none; as ``check_block``."""
    matrix = None if grids is None else GridUpsample(*grids).matrix
    tokens = 23 if matrix is None else matrix.shape[0]
    qkv, scale = draw(batch, tokens, 3, heads, head_dim), head_dim**-0.5
    coarse = tokens if matrix is None else matrix.shape[1]
    all_layers = draw(batch, 3 * heads, coarse, coarse, seed=1)
    for relations in (None, all_layers[:, heads : 2 * heads], all_layers[:, :heads].transpose(2, 3)):
        arguments = (relations, None if relations is None else matrix, scale)
        out, logits = OPS.packed_related_attention(qkv, *arguments, True)
        expected = plain.related_attention(qkv, *arguments)
        exact = plain.related_attention(qkv.double(), *arguments)
        for name, actual, plain_one, exact_one in zip(("out", "logits"), (out, logits), expected, exact, strict=True):
            name = f"{name} of related attention {batch}x{grids}x{heads}x{head_dim}"
            assert_as_accurate(actual, plain_one, exact_one, factor=FORWARD_FACTOR, name=name)
        alone, nothing = OPS.packed_related_attention(qkv, *arguments, False)
        assert nothing is None
        torch.testing.assert_close(alone, out)


def check_mlp_without_norm(rows: int, inputs: int, hidden: int, precision: str) -> None:
    """Bit by bit what its two layers give, one after the other."""
    x, fc1, fc2 = draw(rows, inputs), draw(hidden, inputs, scale=inputs**-0.5), draw(inputs, hidden, seed=1)
    packed1, packed2 = OPS.pack_weight(fc1, precision), OPS.pack_weight(fc2, precision)
    first = OPS.packed_linear(x, None, None, None, packed1, None, hidden, precision, "none")
    actual = OPS.packed_mlp(
        x, None, None, None, packed1, None, hidden, None, None, packed2, None, inputs, precision, "none", None, None
    )
    expected = OPS.packed_linear(first, None, None, None, packed2, None, inputs, precision, "none")
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def check_patch_embed(images: Tensor, patch: tuple[int, int], prefix_rows: int, outputs: int, precision: str) -> None:
    """Against unfolded patches and the exact product of the rounded operands."""
    batch, inputs = images.shape[0], images.shape[1] * patch[0] * patch[1]
    weight, bias = draw(outputs, inputs, scale=inputs**-0.5), draw(outputs, seed=1)
    patches = torch.nn.functional.unfold(images.float(), patch, stride=patch).transpose(1, 2)
    prefix, positions = draw(prefix_rows, outputs, seed=2), draw(patches.shape[1], outputs, seed=3)
    arguments = (bias, precision, "none", None, positions.expand(batch, -1, -1))
    expected = plain.linear(patches, weight, *arguments)
    exact = plain.linear(
        plain.operand(patches, precision).double(), plain.kept_weight(weight, precision).double(), bias.double(),
        "exact", "none", None, positions.double(),
    )  # fmt: skip
    actual = OPS.packed_patch_embed(
        images, OPS.pack_weight(weight, precision), bias, outputs, *patch, prefix, positions, precision
    )
    assert torch.equal(actual[:, :prefix_rows], prefix.expand(batch, -1, -1))
    assert_as_accurate(
        actual[:, prefix_rows:], expected, exact, factor=FORWARD_FACTOR, name=f"{precision} patches of {images.dtype}"
    )


@dataclass(frozen=True)
class Window:
    """Patches, as ``F.unfold`` takes them: heights and widths."""

    patch: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)

    def rows(self, images: Tensor) -> Tensor:
        """The patches ``[B, N, I * height * width]`` of images."""
        return torch.nn.functional.unfold(images, self.patch, 1, self.padding, self.stride).transpose(1, 2)


def packed_split(
    images: Tensor, window: Window, norm: tuple[Tensor | None, Tensor | None, float | None], weight: Tensor,
    bias: Tensor | None, precision: str,
) -> Tensor:  # fmt: skip
    """The operator; ``norm``: gamma, beta, eps."""
    packed = OPS.pack_weight(weight, precision)
    return OPS.packed_split_linear(
        images, window.patch, window.stride, window.padding, *norm, packed, bias, weight.shape[0], precision
    )


def check_split(images: Tensor, window: Window, outputs: int, precision: str) -> None:
    """Against the product of unfolded patches without roundings, and bit by bit against the operators on them."""
    rows = window.rows(images.float())
    inputs = rows.shape[-1]
    weight, bias = draw(outputs, inputs, scale=inputs**-0.5), draw(outputs, seed=1)
    gamma, beta = 1 + draw(inputs, seed=2, scale=0.1), draw(inputs, seed=3, scale=0.1)
    packed = OPS.pack_weight(weight, precision)
    name = f"{precision} {window} of {tuple(images.shape)} {images.dtype}"

    actual = packed_split(images, window, (None, None, None), weight, bias, precision)
    exact = plain.linear(rows.double(), weight.double(), bias.double(), "exact")
    expected = plain.linear(rows, weight, bias, precision)
    assert_as_accurate(actual, expected, exact, factor=FORWARD_FACTOR, name=name)
    apart = OPS.packed_linear(rows, None, None, None, packed, bias, outputs, precision, "none")
    assert torch.equal(actual, apart), name

    for g, b in ((gamma, beta), (None, None)):
        actual = packed_split(images, window, (g, b, 1e-5), weight, bias, precision)
        normed = plain.norm(rows.double(), double(g), double(b), 1e-5, "exact")
        exact = plain.linear(normed, weight.double(), bias.double(), "exact")
        expected = plain.linear(plain.norm(rows, g, b, 1e-5, precision), weight, bias, precision)
        assert_as_accurate(actual, expected, exact, factor=FORWARD_FACTOR, name=f"{name}, normalized")
        apart = OPS.packed_linear(rows, g, b, 1e-5, packed, bias, outputs, precision, "none")
        assert torch.equal(actual, apart), name


def check_performer(kqv: Tensor, projection: Tensor, epsilon: float) -> None:
    """Against the layers' function in float64: as near as in float32. The values' weighted mean may cancel."""
    k, q, v = kqv.chunk(3, -1)
    exact = performer_attention(q.double(), k.double(), v.double(), projection.double(), epsilon=epsilon)
    expected = performer_attention(q, k, v, projection, epsilon=epsilon)
    actual = OPS.packed_performer(kqv, projection, epsilon)
    name = f"performer {tuple(kqv.shape)} {tuple(projection.shape)}, epsilon {epsilon}"
    magnitude = float(v.abs().max())
    assert_as_accurate(actual, expected, exact, factor=FORWARD_FACTOR, name=name, magnitude=magnitude)


def check_merging(images: int, tokens: int, channels: int, heads: int, head_dim: int, count: int, prefix: int) -> None:
    """Against the layer in float32: the same pairs, and their means."""
    x, keys = draw(images, tokens, channels), draw(images, tokens, 3, heads, head_dim)[:, :, 1]
    layer = TokenMerging(count)
    for sizes in (None, torch.arange(1.0, 1 + images * tokens).view(images, tokens)):
        expected = layer.merge(x.double(), keys.double(), None if sizes is None else sizes.double(), count, prefix)
        out, out_sizes, places = OPS.merge_tokens(x, keys, sizes, count, prefix)
        assert torch.equal(places, expected[2])
        assert torch.equal(out_sizes, expected[1].float())
        torch.testing.assert_close(out, expected[0].float())


def check_merging_blocks(batch: int, tokens: int, count: int, precision: str, *, is_gated: bool = False) -> None:
    """Three blocks against one operator after the other, bit by bit."""
    heads, channels, hidden, prefix = 2, 24, 75, 1
    p = block_parameters(channels, heads, 16, hidden, extras=True, is_gated=is_gated)
    x, sizes = draw(batch, tokens, channels), 1.0 + torch.arange(batch * tokens).view(batch, tokens) % 3
    parameters, options = block_arguments(p, heads, "silu" if is_gated else "gelu", precision)
    actual = OPS.packed_merging_blocks(x, sizes, parameters * 3, *options, count, prefix)
    places = torch.arange(tokens).expand(batch, -1)
    for _ in range(3):
        x, sizes, step = merging_block(x, sizes, BlockParameters(*parameters), options, count, prefix)
        places = step.gather(1, places)
    for one, expected in zip(actual, (x, sizes, places), strict=True):
        assert torch.equal(one, expected)


def merging_block(
    x: Tensor, sizes: Tensor, block: BlockParameters, options: Sequence[Any], count: int, prefix: int
) -> tuple[Tensor, Tensor, Tensor]:
    """A block of ``packed_merging_blocks``, one operator after the other."""
    eps1, eps2, heads, head_dim, scale, hidden, activation, precision = options
    channels, inner = x.shape[-1], heads * head_dim
    norm1, norm2 = (block.norm1_weight, block.norm1_bias, eps1), (block.norm2_weight, block.norm2_bias, eps2)
    qkv = OPS.packed_linear(x, *norm1, block.qkv, block.qkv_bias, 3 * inner, precision, "none")
    qkv = qkv.unflatten(-1, (3, heads, head_dim))
    if precision in ("bf16", "int8") and OPS.cpu_capability() in ("avx512_bf16", "avx512_amx"):
        qkv = qkv.bfloat16().float()  # as attention multiplies it
    key_bias = sizes.double().log().float()  # torch's logarithm in float32 depends on the processor
    attended = OPS.packed_attention(qkv, scale, precision, key_bias=key_bias).flatten(-2)
    no_norm = (None, None, None)
    proj = (block.proj, block.proj_bias, channels, precision, "none", block.scale1, x)
    x = OPS.packed_linear(attended, *no_norm, *proj)
    places = torch.arange(x.shape[1]).expand(len(x), -1)
    count = min(count, (x.shape[1] - prefix) // 2)
    if count > 0:
        x, sizes, places = OPS.merge_tokens(x, qkv[:, :, 1], sizes, count, prefix)
    fc1, fc2 = (block.fc1, block.fc1_bias, hidden), (block.fc2, block.fc2_bias, channels)
    gate = (block.gate, block.gate_bias)
    out = OPS.packed_mlp(x, *norm2, *fc1, *gate, *fc2, precision, activation, block.scale2, x)
    return out, sizes, places


def check_ties_of_int8() -> None:
    """Numbers next to ties of the quantization, bit by bit: a row of zeros but for one weight reads them back."""
    largest = 0.1 + draw(50, 1).abs()
    inverse = torch.full_like(largest, 127.0) / largest
    ties = ((torch.arange(126) + 0.5) / inverse).repeat(1, 3)
    x = torch.cat([largest, ties], 1)
    x[:, 127:253] = torch.nextafter(x[:, 127:253], torch.tensor(torch.inf))
    x[:, 253:] = torch.nextafter(x[:, 253:], torch.tensor(0.0))
    x[1::2] *= -1
    integers = (x.double() * inverse.double()).round()
    assert not torch.equal(integers, (x * inverse).round().double()), "no product is a tie but for its rounding"
    kept = packed_linear(x, torch.eye(x.shape[1]), None, "int8").double() * 127 / largest.double()
    torch.testing.assert_close(kept, integers, rtol=1e-5, atol=0)


def check_large_logits(exponent: int, precision: str) -> None:
    """Logits of magnitude ``2^exponent`` and more, so far apart that only the largest of them have a weight."""
    tolerance = 1e-3 if precision == "int8" else 1e-4  # values of 13 bits; as exact as 2^x for bfloat16
    for sign in (1, -1):  # one key stands out, or all others do
        qkv = draw(1, 33, 3, 1, 16)
        qkv[:, :, 0, :, 0] = 1.37 * 2.0 ** (exponent / 2)
        qkv[:, :, 1, :, 0] = 1.19 * 2.0 ** (exponent / 2) * sign
        qkv[:, 5, 1, :, 0] *= 1.25
        qkv[:, :, 1, :, 1:] = 0
        qkv = qkv.bfloat16().float()
        exact = plain.attention(qkv.double(), 0.7, "exact")
        actual = OPS.packed_attention(qkv, 0.7, precision)
        torch.testing.assert_close(actual.double(), exact, rtol=tolerance, atol=tolerance)


def check_masked(precision: str) -> None:
    """The weight of a token with a mask of -100, as Swin has it, is zero, not a denormal number, which takes time."""
    qkv, bias = draw(2, 49, 3, 2, 32), torch.zeros(1, 2, 49, 49)
    bias[..., 21:] = -100.0
    qkv[:, :21, 2, :, 0] = 0
    out = OPS.packed_attention(qkv, 0.1, precision, bias=bias)
    assert (out[..., 0] == 0).all()


def check_all() -> None:
    """A small share of every operator's cases, for a run per instruction set."""
    check_ties_of_int8()
    check_related_attention(2, (3, 5), 2, 20)
    check_performer(draw(2, 150, 3 * 64, scale=0.25), draw(32, 64), 1e-8)
    check_performer(draw(2, 13, 3 * 7), draw(3, 7), 1e-8)
    check_merging(2, 150, 48, 3, 16, 16, 1)
    check_merging(3, 37, 7, 2, 5, 18, 1)
    for precision in PRECISIONS:
        check_large_logits(40, precision)
        check_masked(precision)
        for rows, inputs, outputs in ((1, 7, 5), (13, 33, 70), (40, 192, 130), (9, 1100, 64)):
            check_linear(rows, inputs, outputs, precision, "none", with_all=True)
        check_linear(17, 48, 100, precision, "gelu", with_all=False)
        check_attention(2, 17, 2, 8, precision)
        check_attention(1, 67, 2, 32, precision, draw_rotary(2, 60, 32, is_interleaved=False))
        check_attention(2, 17, 2, 10, precision, draw_rotary(1, 17, 10, is_interleaved=True))
        check_mlp_without_norm(19, 48, 144, precision)
        check_patch_embed(draw(2, 3, 16, 24), (8, 8), 1, 70, precision)
        check_split(draw(2, 3, 17, 15), Window((7, 5), (4, 2), (2, 3)), 70, precision)
        check_split(draw(1, 1, 6, 6 * 20).bfloat16(), Window((3, 60), (2, 40), (1, 20)), 70, precision)
        check_block(2, 19, (48, 3, 16, 96), precision, extras=False)
        check_block(3, 33, (40, 2, 24, 75), precision, extras=True)
        check_merging_blocks(2, 70, 7, precision)
        rotary = draw_rotary(1, 28, 16, is_interleaved=False)
        check_block(3, 33, (48, 3, 16, 150), precision, extras=True, is_gated=True, positions=rotary)
        windows = draw_windows((9, 7), (4, 3), (1, 2), 3)
        check_attention(2, 63, 3, 32, precision, windows, cosine=draw(3, seed=3).exp())
        check_block(2, 63, (48, 3, 32, 96), precision, extras=True, positions=windows)
        terms = BiasTables(None, None, None, None, draw(32, 13, scale=0.3), draw(32, 17, scale=0.3))
        check_attention(2, 63, 3, 32, precision, terms)
