"""Sample calls of each operator: chosen, random and invalid ones.

For each operator: ``*_samples`` (the same calls for every dtype), ``draw_*`` (for the fuzz test) and ``misshape_*``
(for each mistake, the argument that the error must name and the call).

Shapes: B batch, N tokens, C channels, H heads, D head dimension, F hidden width.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from support.sample import Make, Sample
from support.shapes import CHANNELS, draw_attention_sizes, draw_leading_shape
from vitfast.formats import FloatFormat
from vitfast.layers import GridUpsample

# --- attention ---


def _attention_arguments(
    make: Make, sizes: tuple[int, int, int, int], bias: str | None, packed: bool, spread: float
) -> dict[str, Any]:
    b, h, n, d = sizes
    if packed:
        arguments: dict[str, Any] = {"qkv": make.normal(b, n, 3, h, d, scale=spread)}
    else:
        arguments = {name: make.normal(b, h, n, d, scale=spread) for name in ("q", "k", "v")}
    if bias is not None:
        arguments["bias"] = make.normal(1 if bias == "shared" else b, h, n, n)
    return arguments


def _cancelling_terms(sizes: tuple[int, int, int, int]) -> int:
    """With one token the softmax is constant: the gradients of q, k and bias are differences of equal sums over D."""
    return sizes[3] if sizes[2] == 1 else 0


def attention_samples(packed: bool) -> Callable[[Make], list[Sample]]:
    """Calls of attention, or attention_packed: the token counts and head dimensions of the models, and edge cases."""
    # name: sizes [B, H, N, D], bias, options, spread of q, k and v
    table: dict[str, tuple[tuple[int, int, int, int], str | None, dict[str, Any], float]] = {
        "tiny": ((2, 2, 3, 8), None, {}, 1.0),
        "tiny_bias_logits": ((2, 2, 3, 8), "each", {"return_logits": True}, 1.0),
        "tiny_shared_bias": ((2, 1, 5, 8), "shared", {"scale": 0.3}, 1.0),
        "tiny_single_head_dim": ((1, 2, 4, 1), None, {}, 1.0),
        "tiny_odd_head_dim": ((1, 2, 4, 3), "shared", {"return_logits": True}, 1.0),
        "one_token": ((2, 3, 1, 32), None, {}, 1.0),
        "15_tokens": ((2, 2, 15, 16), "each", {}, 1.0),
        "16_tokens": ((1, 3, 16, 32), "shared", {"return_logits": True}, 1.0),
        "17_tokens": ((3, 1, 17, 48), None, {"return_logits": True}, 1.0),
        "dvt_50_tokens": ((2, 2, 50, 64), "each", {"return_logits": True}, 1.0),
        "dvt_101_tokens": ((1, 2, 101, 64), "each", {"return_logits": True}, 1.0),
        "convit_head_dim": ((1, 2, 196, 48), "shared", {}, 1.0),
        "vit_197_tokens": ((1, 3, 197, 64), None, {}, 1.0),
        "deit_198_tokens_bias": ((1, 1, 198, 80), "shared", {"return_logits": True}, 1.0),
        "257_tokens": ((1, 1, 257, 96), None, {}, 1.0),
        "384_577_tokens": ((1, 1, 577, 64), "shared", {}, 1.0),
        "128_head_dim": ((1, 1, 49, 128), None, {"scale": 0.125}, 1.0),
        "24_head_dim": ((1, 2, 33, 24), None, {}, 1.0),
        "large_logits": ((1, 2, 40, 32), "shared", {"scale": 1.0}, 3.0),
        "empty_batch": ((0, 2, 17, 32), "shared", {"return_logits": True}, 1.0),
        "no_tokens": ((2, 2, 0, 32), None, {}, 1.0),
        "no_heads": ((2, 0, 5, 32), None, {}, 1.0),
    }

    def samples(make: Make) -> list[Sample]:
        return [
            Sample(
                name, {**_attention_arguments(make, sizes, bias, packed, spread), **options}, _cancelling_terms(sizes)
            )
            for name, (sizes, bias, options, spread) in table.items()
        ]

    return samples


def draw_attention(packed: bool) -> Callable[[random.Random, Make], Sample]:
    """Draws a call of attention or attention_packed."""

    def draw_sample(draw: random.Random, make: Make) -> Sample:
        sizes = draw_attention_sizes(draw, 600_000)
        bias = draw.choice([None, "shared", "each"])
        arguments = _attention_arguments(make, sizes, bias, packed, draw.choice([0.1, 1.0, 2.0]))
        options = {"scale": draw.choice([None, 0.125, 1.0]), "return_logits": draw.random() < 0.3}
        return Sample("drawn", {**arguments, **options}, _cancelling_terms(sizes))

    return draw_sample


def misshape_attention(sample: Sample) -> list[tuple[str, Sample]]:
    """Wrong shapes and options of attention."""
    q, k, v = (sample.tensors[name] for name in ("q", "k", "v"))
    batch, heads, tokens, _ = q.shape
    return [
        ("q", sample.replace(q=q[0:1].reshape(-1))),
        ("k", sample.replace(k=k.new_zeros(*k.shape[:3], k.shape[3] + 1))),
        ("k", sample.replace(k=k.new_zeros(batch, heads, tokens + 1, k.shape[3]))),
        ("v", sample.replace(v=v.new_zeros(batch, heads + 1, tokens, v.shape[3]))),
        ("v", sample.replace(v=v[None])),
        *_misshape_bias(sample, batch, heads, tokens),
    ]


def misshape_packed(sample: Sample) -> list[tuple[str, Sample]]:
    """Wrong shapes and options of attention_packed."""
    qkv = sample.tensors["qkv"]
    batch, tokens, _, heads, head_dim = qkv.shape
    return [
        ("qkv", sample.replace(qkv=qkv.new_zeros(batch, tokens, 3 * heads * head_dim))),
        ("qkv", sample.replace(qkv=qkv.new_zeros(batch, tokens, 2, heads, head_dim))),
        *_misshape_bias(sample, batch, heads, tokens),
    ]


def _misshape_bias(sample: Sample, batch: int, heads: int, tokens: int) -> list[tuple[str, Sample]]:
    like = next(iter(sample.tensors.values()))
    shapes = [(batch + 2, heads, tokens, tokens), (1, heads, tokens, tokens + 1), (heads, tokens, tokens)]
    return [("bias", sample.replace(bias=like.new_zeros(shape))) for shape in shapes] + [
        ("scale", sample.replace(scale="0.1")),
        ("dropout_p", sample.replace(dropout_p=1.5)),
        ("dropout_p", sample.replace(dropout_p=-0.1)),
    ]


# --- gated_positional_attention ---


def _gated_arguments(make: Make, sizes: tuple[int, int, int, int], spread: float) -> dict[str, Any]:
    b, h, n, d = sizes
    return {
        "qkv": make.normal(b, n, 3, h, d, scale=spread),
        "position": make.normal(h, n, n, scale=2.0).double().softmax(-1).to(make.dtype),
        "gate": make.normal(h).double().sigmoid().to(make.dtype),
    }


def _gated_cancelling_terms(sizes: tuple[int, int, int, int]) -> int:
    """The gate's gradient is a sum over images, tokens and channels, whose errors add up like steps of either sign."""
    b, _, n, d = sizes
    return _cancelling_terms(sizes) + 2 * math.isqrt(b * n * d)


def gated_samples(make: Make) -> list[Sample]:
    """Calls of gated_positional_attention: ConViT's sizes, and the edges."""
    # name: sizes [B, H, N, D], options, spread of q, k and v
    table: dict[str, tuple[tuple[int, int, int, int], dict[str, Any], float]] = {
        "tiny": ((2, 2, 4, 8), {}, 1.0),
        "tiny_scale": ((2, 1, 9, 8), {"scale": 0.3}, 1.0),
        "tiny_one_image": ((1, 3, 4, 8), {}, 1.0),
        "tiny_odd_head_dim": ((1, 2, 4, 3), {}, 1.0),
        "one_token": ((2, 3, 1, 32), {}, 1.0),
        "15_tokens": ((2, 2, 15, 16), {}, 1.0),
        "16_tokens": ((1, 3, 16, 32), {}, 1.0),
        "49_tokens": ((2, 2, 49, 48), {}, 1.0),
        "convit_plus_144_tokens": ((1, 1, 144, 64), {}, 1.0),
        "convit_196_tokens": ((1, 2, 196, 48), {}, 1.0),
        "289_tokens": ((1, 1, 289, 64), {}, 1.0),
        "large_logits": ((1, 2, 40, 32), {"scale": 1.0}, 3.0),
        "empty_batch": ((0, 2, 16, 32), {}, 1.0),
        "no_tokens": ((2, 2, 0, 32), {}, 1.0),
        "no_heads": ((2, 0, 4, 32), {}, 1.0),
    }
    return [
        Sample(name, {**_gated_arguments(make, sizes, spread), **options}, _gated_cancelling_terms(sizes))
        for name, (sizes, options, spread) in table.items()
    ]


def draw_gated(draw: random.Random, make: Make) -> Sample:
    """Draws a call of gated_positional_attention."""
    sizes = draw_attention_sizes(draw, 600_000)
    arguments = _gated_arguments(make, sizes, draw.choice([0.1, 1.0, 2.0]))
    return Sample("drawn", {**arguments, "scale": draw.choice([None, 0.125, 1.0])}, _gated_cancelling_terms(sizes))


def misshape_gated(sample: Sample) -> list[tuple[str, Sample]]:
    """Wrong shapes and options of gated_positional_attention."""
    qkv, position, gate = (sample.tensors[name] for name in ("qkv", "position", "gate"))
    batch, tokens, _, heads, head_dim = qkv.shape
    return [
        ("qkv", sample.replace(qkv=qkv.new_zeros(batch, tokens, 3 * heads * head_dim))),
        ("qkv", sample.replace(qkv=qkv.new_zeros(batch, tokens, 2, heads, head_dim))),
        ("qkv", sample.replace(qkv=qkv.new_zeros(batch, tokens, 3, heads, 0))),
        ("position", sample.replace(position=position[None])),
        ("position", sample.replace(position=position.new_zeros(heads, tokens, tokens + 1))),
        ("position", sample.replace(position=position.new_zeros(heads + 1, tokens, tokens))),
        ("gate", sample.replace(gate=gate.new_zeros(heads + 1))),
        ("gate", sample.replace(gate=gate[:, None])),
        ("scale", sample.replace(scale="0.1")),
        ("scale", sample.replace(scale=True)),
    ]


# --- layer_norm, add_layer_norm ---


def _layer_norm_arguments(make: Make, shape: tuple[int, ...], parameters: str, residual: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {"x": make.normal(*shape, scale=1.5, mean=0.5)}
    if residual:
        arguments["residual"] = make.normal(*shape, mean=-0.25)
    arguments["weight"] = make.normal(shape[-1], scale=0.2, mean=1.0) if "weight" in parameters else None
    arguments["bias"] = make.normal(shape[-1], scale=0.2) if "bias" in parameters else None
    return arguments


def layer_norm_samples(residual: bool) -> Callable[[Make], list[Sample]]:
    """Calls of layer_norm, or with ``residual`` of add_layer_norm."""
    table: dict[str, tuple[tuple[int, ...], str, float]] = {
        "tiny": ((3, 5), "weight bias", 1e-5),
        "tiny_plain": ((2, 2, 7), "", 1e-5),
        "tiny_weight": ((4, 8), "weight", 1e-6),
        "tiny_bias": ((4, 9), "bias", 1e-6),
        "vit_tiny": ((2, 197, 192), "weight bias", 1e-6),
        "vit_base": ((1, 50, 768), "weight bias", 1e-5),
        "odd_channels": ((3, 17, 193), "weight bias", 1e-5),
        "one_row": ((64,), "weight bias", 1e-5),
        "wide": ((5, 3073), "weight bias", 1e-5),
        "four_dimensions": ((2, 3, 4, 48), "weight bias", 1e-5),
        "many_rows": ((1000, 16), "weight bias", 1e-5),
        "empty_batch": ((0, 17, 64), "weight bias", 1e-5),
    }

    def samples(make: Make) -> list[Sample]:
        return [
            Sample(name, {**_layer_norm_arguments(make, shape, parameters, residual), "eps": eps})
            for name, (shape, parameters, eps) in table.items()
        ]

    return samples


def draw_layer_norm(residual: bool) -> Callable[[random.Random, Make], Sample]:
    """Draws a call of layer_norm, or with ``residual`` of add_layer_norm."""

    def draw_sample(draw: random.Random, make: Make) -> Sample:
        # a single channel equals its mean: the result is only rounding error, tested separately
        shape = (*draw_leading_shape(draw, 200), draw.choice([c for c in CHANNELS if c > 3]))
        parameters = draw.choice(["weight bias", "weight", "bias", ""])
        arguments = _layer_norm_arguments(make, shape, parameters, residual)
        return Sample("drawn", {**arguments, "eps": draw.choice([1e-5, 1e-6, 1e-3])})

    return draw_sample


def misshape_layer_norm(sample: Sample) -> list[tuple[str, Sample]]:
    """Wrong shapes and options of layer_norm and add_layer_norm."""
    x = sample.tensors["x"]
    channels = x.shape[-1]
    calls = [
        ("weight", sample.replace(weight=x.new_zeros(channels + 1))),
        ("weight", sample.replace(weight=x.new_zeros(1, channels))),
        ("bias", sample.replace(bias=x.new_zeros(channels + 1))),
        ("eps", sample.replace(eps=-1e-5)),
        ("eps", sample.replace(eps=float("nan"))),
        ("eps", sample.replace(eps="1e-5")),
    ]
    if "residual" in sample.tensors:
        return [*calls, ("residual", sample.replace(residual=x.new_zeros(*x.shape, 1)))]
    return [*calls, ("x", sample.replace(x=x.new_zeros(())))]


# --- mlp ---


def _mlp_arguments(make: Make, leading: tuple[int, ...], c: int, f: int, out: int, parts: str) -> dict[str, Any]:
    return {
        "x": make.normal(*leading, c),
        "fc1_weight": make.normal(f, c, scale=max(c, 1) ** -0.5),
        "fc1_bias": make.normal(f, scale=0.1) if "fc1_bias" in parts else None,
        "fc2_weight": make.normal(out, f, scale=max(f, 1) ** -0.5),
        "fc2_bias": make.normal(out, scale=0.1) if "fc2_bias" in parts else None,
        "residual": make.normal(*leading, out) if "residual" in parts else None,
        "approximate": "tanh" if "tanh" in parts else "none",
    }


def mlp_samples(make: Make) -> list[Sample]:
    """Calls of mlp, with and without each part."""
    everything = "fc1_bias fc2_bias residual"
    table: dict[str, tuple[tuple[int, ...], int, int, int, str]] = {
        "tiny": ((3,), 4, 6, 4, everything),
        "tiny_plain": ((2, 2), 3, 5, 3, ""),
        "tiny_tanh": ((2, 2), 3, 5, 4, "fc1_bias fc2_bias tanh"),
        "tiny_residual_only": ((2, 2), 3, 5, 3, "residual"),
        "one_row": ((), 16, 64, 16, everything),
        "vit_nano": ((2, 17), 64, 256, 64, everything),
        "vit_tiny": ((1, 197), 192, 768, 192, everything),
        "vit_tiny_tanh": ((1, 50), 192, 768, 192, everything + " tanh"),
        "odd": ((7, 3), 65, 129, 31, everything),
        "fc1_bias_only": ((5, 16), 48, 96, 48, "fc1_bias"),
        "fc2_bias_only": ((5, 16), 48, 96, 48, "fc2_bias tanh"),
        "empty_batch": ((0, 17), 64, 128, 64, everything),
    }
    return [Sample(name, _mlp_arguments(make, *row)) for name, row in table.items()]


def draw_mlp(draw: random.Random, make: Make) -> Sample:
    """Draws a call of mlp."""
    c, f, out = (draw.choice((1, 3, 8, 15, 16, 17, 31, 64, 65, 96)) for _ in range(3))
    parts = " ".join(part for part in ("fc1_bias", "fc2_bias", "residual", "tanh") if draw.random() < 0.6)
    return Sample("drawn", _mlp_arguments(make, draw_leading_shape(draw, 200), c, f, out, parts))


def misshape_mlp(sample: Sample) -> list[tuple[str, Sample]]:
    """Wrong shapes and options of mlp."""
    x, fc1_weight, fc2_weight = (sample.tensors[name] for name in ("x", "fc1_weight", "fc2_weight"))
    f, c = fc1_weight.shape
    out = fc2_weight.shape[0]
    return [
        ("x", sample.replace(x=x.new_zeros(()))),
        ("fc1_weight", sample.replace(fc1_weight=x.new_zeros(f, c + 1))),
        ("fc1_weight", sample.replace(fc1_weight=x.new_zeros(f, c, 1))),
        ("fc1_bias", sample.replace(fc1_bias=x.new_zeros(f + 1))),
        ("fc2_weight", sample.replace(fc2_weight=x.new_zeros(out, f + 1))),
        ("fc2_bias", sample.replace(fc2_bias=x.new_zeros(out, 1))),
        ("residual", sample.replace(residual=x.new_zeros(*x.shape[:-1], out + 1))),
        ("approximate", sample.replace(approximate="erf")),
    ]


# --- linear ---


def _linear_arguments(make: Make, leading: tuple[int, ...], k: int, n: int, parts: str) -> dict[str, Any]:
    named = parts.split()
    return {
        "x": make.normal(*leading, k),
        "weight": make.normal(n, k, scale=max(k, 1) ** -0.5),
        "bias": make.normal(n, scale=0.1) if "bias" in named else None,
        "activation": next((name for name in ("gelu", "gelu_tanh") if name in named), "none"),
        "scale": make.normal(n, scale=0.1, mean=0.5) if "scale" in named else None,
        "residual": make.normal(*leading, n) if "residual" in named else None,
    }


def linear_samples(make: Make) -> list[Sample]:
    """Calls of linear, with and without each part."""
    everything = "bias gelu scale residual"
    table: dict[str, tuple[tuple[int, ...], int, int, str]] = {
        "tiny": ((3,), 4, 6, everything),
        "tiny_plain": ((2, 2), 3, 5, ""),
        "tiny_tanh": ((2, 2), 3, 5, "bias gelu_tanh"),
        "tiny_scale": ((2, 2), 3, 5, "scale"),
        "tiny_residual": ((2, 2), 3, 5, "residual"),
        "one_row": ((), 16, 32, everything),
        "vit_nano_fc1": ((2, 17), 64, 256, "bias gelu"),
        "vit_nano_fc2": ((2, 17), 256, 64, "bias scale residual"),
        "vit_tiny_qkv": ((1, 50), 192, 576, "bias"),
        "tanh_everything": ((5, 16), 48, 96, "bias gelu_tanh scale residual"),
        "odd": ((7, 3), 65, 31, everything),
        "empty_batch": ((0, 17), 64, 128, everything),
    }
    return [Sample(name, _linear_arguments(make, *row)) for name, row in table.items()]


def draw_linear(draw: random.Random, make: Make) -> Sample:
    """Draws a call of linear."""
    k, n = (draw.choice((1, 3, 8, 15, 16, 17, 31, 64, 65, 96)) for _ in range(2))
    parts = [part for part in ("bias", "scale", "residual") if draw.random() < 0.6]
    parts.append(draw.choice(("none", "gelu", "gelu_tanh")))
    return Sample("drawn", _linear_arguments(make, draw_leading_shape(draw, 200), k, n, " ".join(parts)))


def misshape_linear(sample: Sample) -> list[tuple[str, Sample]]:
    """Wrong shapes and options of linear."""
    x, weight = sample.tensors["x"], sample.tensors["weight"]
    n, k = weight.shape
    return [
        ("x", sample.replace(x=x.new_zeros(()))),
        ("weight", sample.replace(weight=x.new_zeros(n, k + 1))),
        ("weight", sample.replace(weight=x.new_zeros(n, k, 1))),
        ("bias", sample.replace(bias=x.new_zeros(n + 1))),
        ("scale", sample.replace(scale=x.new_zeros(n, 1))),
        ("residual", sample.replace(residual=x.new_zeros(*x.shape[:-1], n + 1))),
        ("activation", sample.replace(activation="relu")),
        ("format", sample.replace(format="fp16")),
    ]


# --- quantize_float ---

FORMATS: dict[str, FloatFormat] = {
    "fp16": FloatFormat.fp16(),
    "bf16": FloatFormat.bf16(),
    "tf32": FloatFormat.tf32(),
    "fp8_e4m3fn": FloatFormat.fp8_e4m3fn(),
    "fp8_e5m2": FloatFormat.fp8_e5m2(),
    "fp6_e3m2": FloatFormat.fp6_e3m2(),
    "fp6_e2m3": FloatFormat.fp6_e2m3(),
    "fp4_e2m1": FloatFormat.fp4_e2m1(),
    "ieee(3,0)": FloatFormat.ieee(3, 0),
    "ieee(8,0)": FloatFormat.ieee(8, 0),
    "qtorch(5,10)": FloatFormat.qtorch(5, 10),
    "qtorch(8,10)": FloatFormat.qtorch(8, 10),
}
DETERMINISTIC_ROUNDINGS = ("nearest_even", "nearest_away", "toward_zero")


def quantize_samples(make: Make) -> list[Sample]:
    """Calls of quantize_float with the deterministic roundings."""
    calls = [
        ("tiny", (3, 5), "fp16", "nearest_even"),
        ("scalar", (), "fp8_e5m2", "nearest_even"),
        ("activations", (2, 17, 64), "fp16", "nearest_away"),
        ("odd", (7, 31), "tf32", "toward_zero"),
        ("long", (1027,), "bf16", "nearest_even"),
        ("fp8", (3, 33), "fp8_e4m3fn", "nearest_even"),
        ("fp4", (3, 33), "fp4_e2m1", "nearest_even"),
        ("qtorch", (65,), "qtorch(5,10)", "nearest_away"),
        ("empty", (0, 5), "fp16", "nearest_even"),
    ]
    ties = torch.arange(1.0, 1.0 + 2.0**-5, 2.0**-11, dtype=torch.float64).to(make.dtype)
    return [
        *(
            Sample(name, {"x": make.normal(*shape, scale=4.0), "format": FORMATS[format], "rounding": rounding})
            for name, shape, format, rounding in calls
        ),
        Sample("ties", {"x": ties, "format": FORMATS["fp16"], "rounding": "nearest_even"}),
    ]


def draw_quantize(draw: random.Random, make: Make) -> Sample:
    """Draws a call of quantize_float."""
    shape = (*draw_leading_shape(draw, 20), draw.choice((0, 1, 15, 16, 17)))
    scale = 10.0 ** draw.randint(-9, 6)
    format = FORMATS[draw.choice(list(FORMATS))]
    overflow = draw.choice([None, "saturate"])
    arguments = {"format": format, "rounding": draw.choice(DETERMINISTIC_ROUNDINGS), "overflow": overflow}
    return Sample("drawn", {"x": make.normal(*shape, scale=scale), **arguments})


def misshape_quantize(sample: Sample) -> list[tuple[str, Sample]]:
    """Wrong options of quantize_float."""
    return [
        ("format", sample.replace(format="fp16")),
        ("rounding", sample.replace(rounding="up")),
        ("overflow", sample.replace(overflow="wrap")),
        ("overflow", sample.replace(format=FloatFormat.fp4_e2m1(), overflow="inf")),
        ("overflow", sample.replace(format=FloatFormat.fp4_e2m1(), overflow="nan")),
        ("seed", sample.replace(rounding="stochastic", seed=-1)),
        ("seed", sample.replace(rounding="stochastic", seed=1.5)),
        ("seed", sample.replace(rounding="stochastic", seed=torch.zeros(2, dtype=torch.int64))),
    ]


# --- quantize_fixed ---


def fixed_samples(make: Make) -> list[Sample]:
    """Calls of quantize_fixed with the deterministic roundings."""
    calls: list[tuple[str, tuple[int, ...], tuple[int, int], dict[str, Any]]] = [
        ("tiny", (3, 5), (11, 9), {}),
        ("tiny_wrap", (3, 5), (4, 2), {"overflow": "wrap"}),
        ("scalar", (), (8, 4), {"rounding": "nearest_away"}),
        ("activations", (2, 17, 64), (11, 8), {}),
        ("odd", (7, 31), (11, 7), {"rounding": "toward_zero"}),
        ("long", (1027,), (6, 3), {"symmetric": True}),
        ("unbounded", (3, 33), (8, 4), {"overflow": "unbounded"}),
        ("coarse", (65,), (8, -1), {"rounding": "nearest_away", "overflow": "wrap"}),
        ("empty", (0, 5), (8, 4), {}),
    ]
    return [
        Sample(
            name,
            {"x": make.normal(*shape, scale=4.0), "word_length": lengths[0], "fraction_length": lengths[1], **options},
        )
        for name, shape, lengths, options in calls
    ]


def draw_fixed(draw: random.Random, make: Make) -> Sample:
    """Draws a call of quantize_fixed."""
    shape = (*draw_leading_shape(draw, 20), draw.choice((0, 1, 15, 16, 17)))
    options = {"rounding": draw.choice(DETERMINISTIC_ROUNDINGS), "overflow": draw.choice(("saturate", "wrap"))}
    lengths = {"word_length": draw.randint(2, 24), "fraction_length": draw.randint(-4, 30)}
    return Sample("drawn", {"x": make.normal(*shape, scale=10.0 ** draw.randint(-9, 6)), **lengths, **options})


def misshape_fixed(sample: Sample) -> list[tuple[str, Sample]]:
    """Wrong options of quantize_fixed."""
    return [
        ("word_length", sample.replace(word_length=1)),
        ("word_length", sample.replace(word_length=25)),
        ("word_length", sample.replace(word_length=8.0)),
        ("fraction_length", sample.replace(fraction_length=65)),
        ("fraction_length", sample.replace(fraction_length=-65)),
        ("rounding", sample.replace(rounding="up")),
        ("overflow", sample.replace(overflow="inf")),
        ("numerics", sample.replace(numerics="torch")),
        ("seed", sample.replace(rounding="stochastic", seed=-1)),
    ]


# --- matmul_accumulate ---


def accumulate_samples(make: Make) -> list[Sample]:
    """Calls of matmul_accumulate; small ones, as the oracle is slow."""
    calls: list[tuple[str, tuple[int, ...], tuple[int, int], str, int | None]] = [
        ("tiny", (3,), (5, 4), "fp16", 1),
        ("tiny_leading", (2, 2), (7, 3), "fp16", 4),
        ("one_row", (), (17, 5), "bf16", 8),
        ("whole", (2, 3), (33, 2), "fp16", None),
        ("chunk_16", (5,), (40, 3), "fp8_e4m3fn", 16),
        ("columns", (2,), (3, 67), "fp16", 1),
        ("rows", (43,), (48, 2), "fp16", 4),
        ("no_sum", (2,), (0, 3), "fp16", 4),
        ("empty_batch", (0, 3), (8, 4), "fp16", 4),
    ]
    return [
        Sample(name, _accumulate_arguments(make, leading, sizes, format, chunk))
        for name, leading, sizes, format, chunk in calls
    ]


def _accumulate_arguments(
    make: Make, leading: tuple[int, ...], sizes: tuple[int, int], format: str, chunk: int | None
) -> dict[str, Any]:
    depth, columns = sizes
    x, w = make.normal(*leading, depth), make.normal(columns, depth)
    return {"x": x, "w": w, "accumulator": FORMATS[format], "chunk": chunk}


def draw_accumulate(draw: random.Random, make: Make) -> Sample:
    """Draws a call of matmul_accumulate."""
    sizes = draw.choice((0, 1, 3, 8, 17)), draw.choice((0, 1, 2, 5))
    leading, format = draw_leading_shape(draw, 6), draw.choice(list(FORMATS))
    return Sample("drawn", _accumulate_arguments(make, leading, sizes, format, draw.choice((1, 4, 8, 16, None))))


def misshape_accumulate(sample: Sample) -> list[tuple[str, Sample]]:
    """Wrong shapes and options of matmul_accumulate."""
    x, w = sample.tensors["x"], sample.tensors["w"]
    return [
        ("x", sample.replace(x=x.new_zeros(()))),
        ("w", sample.replace(w=w.new_zeros(w.shape[0], w.shape[1] + 1))),
        ("w", sample.replace(w=w[None])),
        ("chunk", sample.replace(chunk=0)),
        ("chunk", sample.replace(chunk=1.5)),
        ("accumulator", sample.replace(accumulator="fp16")),
        ("rounding", sample.replace(rounding="stochastic")),
        ("rounding", sample.replace(rounding="up")),
    ]


# --- upsample_relations ---


def upsample_samples(make: Make) -> list[Sample]:
    """Calls of upsample_relations, with the matrices of real grids and others."""
    layers, matrix = make.normal(2, 6, 5, 5), GridUpsample(2, 3).matrix.to(make.dtype)
    row_of_zeros = torch.tensor([[0.0, 0.0], [0.5, -2.0]])
    return [
        Sample("tiny_finer", _upsample_arguments(make, (2, 3), GridUpsample(2, 3).matrix)),
        Sample("tiny_coarser", _upsample_arguments(make, (1, 2), GridUpsample(3, 2).matrix)),
        Sample("as_published", _upsample_arguments(make, (1, 2), GridUpsample(7, 10).matrix)),
        Sample("tiny_one_token", _upsample_arguments(make, (2, 1), torch.ones(1, 1))),
        Sample("no_image", _upsample_arguments(make, (0, 2), GridUpsample(1, 2).matrix)),
        Sample("tiny_row_of_zeros", _upsample_arguments(make, (1, 1), row_of_zeros)),
        Sample("dense", _upsample_arguments(make, (1, 2), make.normal(18, 19))),
        Sample("tiny_layer_of_many", {"x": layers[:, 2:4], "matrix": matrix}),
        Sample("tiny_transposed", {"x": layers.mT, "matrix": matrix}),
    ]


def _upsample_arguments(make: Make, leading: tuple[int, int], matrix: Tensor) -> dict[str, Any]:
    tokens = matrix.shape[1]
    return {"x": make.normal(*leading, tokens, tokens), "matrix": matrix.to(make.dtype)}


def draw_upsample(draw: random.Random, make: Make) -> Sample:
    """Draws a call of upsample_relations."""
    matrix = GridUpsample(draw.choice((1, 2, 3, 5)), draw.choice((1, 2, 4))).matrix
    return Sample("drawn", _upsample_arguments(make, (draw.choice((0, 1, 3)), draw.choice((1, 2))), matrix))


def misshape_upsample(sample: Sample) -> list[tuple[str, Sample]]:
    """Wrong shapes of upsample_relations."""
    x, matrix = sample.tensors["x"], sample.tensors["matrix"]
    return [
        ("x", sample.replace(x=x.new_zeros(x.shape[1:]))),
        ("x", sample.replace(x=x.new_zeros((*x.shape[:3], x.shape[3] + 1)))),
        ("matrix", sample.replace(matrix=matrix[0])),
        ("matrix", sample.replace(matrix=matrix.new_zeros(2, x.shape[3] + 1))),
    ]
