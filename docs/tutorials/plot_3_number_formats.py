"""What a number format does to a weight
=====================================

A format is a set of numbers. Rounding a weight to it moves every element to the nearest of them; these plots show where
they are and what is lost.
"""

# %%
# The numbers of a format
# -----------------------
#
# ``FloatFormat`` has presets for the usual formats; ``FloatFormat.ieee(exponent_bits, mantissa_bits)`` makes others.

import matplotlib.pyplot as plt
import torch

import vitfast
from vitfast.formats import FloatFormat
from vitfast.ops import quantize_float

torch.manual_seed(0)
formats = {
    "FP4 (E2M1)": FloatFormat.fp4_e2m1(),
    "FP6 (E3M2)": FloatFormat.fp6_e3m2(),
    "FP8 (E4M3)": FloatFormat.fp8_e4m3fn(),
    "FP8 (E5M2)": FloatFormat.fp8_e5m2(),
    "FP16": FloatFormat.fp16(),
}
grid = torch.linspace(0, 8, 100_001)
figure, axes = plt.subplots(figsize=(7, 2.6))
for row, (_name, number_format) in enumerate(list(formats.items())[:4]):
    values = quantize_float(grid, number_format).unique()
    axes.plot(values, torch.full_like(values, row), "|", markersize=14)
axes.set(yticks=range(4), yticklabels=list(formats)[:4], xlabel="value")
figure.tight_layout()

# %%
# The steps double with each power of two. Mantissa bits halve them; exponent bits extend the range.
#
# A weight
# --------
#
# The weights of a ViT are small, a normal distribution around zero with a standard deviation of about 0.02 here.

model = vitfast.create_model("vit_tiny_patch16_224")
weight = model.blocks[0].mlp.fc1.weight.detach()

figure, rows = plt.subplots(1, 3, figsize=(9, 2.8), sharey=True)
for axes, name in zip(rows, ("FP6 (E3M2)", "FP8 (E4M3)", "FP16"), strict=True):
    axes.hist(quantize_float(weight, formats[name]).flatten(), bins=200, range=(-0.08, 0.08))
    axes.set(title=name, yscale="log")
figure.tight_layout()

# %%
# In FP6 nothing is left: its smallest positive number is 1/16, and all weights become zero or ±1/16. Formats of few
# bits need a scale for a block of weights, as Microscaling (MX) formats have it.
#
# The error, element by element
# -----------------------------

figure, axes = plt.subplots(figsize=(7, 3))
for name in ("FP8 (E5M2)", "FP8 (E4M3)", "FP16"):
    error = (quantize_float(weight, formats[name]) - weight).abs() / weight.abs()
    order = weight.abs().flatten().argsort()[::400]
    axes.plot(weight.abs().flatten()[order], error.flatten()[order], ".", markersize=2, label=name)
axes.set(xscale="log", yscale="log", xlabel="|weight|", ylabel="relative error")
axes.legend()
figure.tight_layout()

# %%
# The relative error is at most half a step, 2\ :sup:`-(mantissa bits + 1)`, until the numbers become subnormal: from
# there on the step stays, and the relative error of smaller weights grows.
