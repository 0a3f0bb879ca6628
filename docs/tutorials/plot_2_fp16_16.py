"""FP16_16, from post-training to quantization-aware training
===========================================================

``quantize_`` rounds weights and activations of a model bit by bit, in float32. This measures what a number format costs
before any hardware has it, and trains a model for it.
"""

# %%
# A trained model
# ---------------
#
# A very small ViT learns the handwritten digits that are part of the package, in ten epochs.

import copy
import tempfile

import matplotlib.pyplot as plt
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

import vitfast
from vitfast import train
from vitfast.config import load_config
from vitfast.data import build_dataset

run = tempfile.mkdtemp() + "/digits"
options = ["schedule.epochs=10", "schedule.warmup_epochs=1", "data.batch_size=16", "optim.lr=2e-3"]
options += [f"data.augment.{name}=0" for name in ("affine_degrees", "affine_translate", "affine_scale")]
train.main([*options, f"run_dir={run}"])
source = vitfast.create_model(checkpoint=run).eval()

data = load_config([]).data  # the digits, as the run read them
test = DataLoader(build_dataset(data, "test", seed=0), batch_size=120)


@torch.no_grad()
def accuracy(model):
    """Returns the share of right test images."""
    return sum((model(images).argmax(1) == labels).sum().item() for images, labels in test) / len(test.dataset)


results = {"float32": accuracy(source)}

# %%
# After training
# --------------
#
# In ``FP16_16`` the operands of GEMMs and LayerNorms and all stored results are in half precision, and GEMMs accumulate
# in float32. FP6 (E2M3) has 1/128 of its numbers.

formats = {"FP16_16": vitfast.FP16_16Config(), "FP6 (E2M3)": vitfast.FloatConfig("fp6_e2m3")}
quantized = {}
for name, config in formats.items():
    quantized[name] = copy.deepcopy(source)
    vitfast.quantize_(quantized[name], config)
    results[f"{name}\nafter training"] = accuracy(quantized[name])
for name, value in results.items():
    print(" ".join(name.split()), f"{value:.1%}")

# %%
# The report compares each layer's output with that of the source, in decibels: 20 dB more are ten times less error.

figure, axes = plt.subplots(figsize=(7, 3))
for name, model in quantized.items():
    report = vitfast.quantization_report(model, test, reference=source)
    axes.plot([layer.signal_to_noise_db for layer in report.layers], ".-", label=name)
axes.set(xlabel="layer", ylabel="signal/noise in dB")
axes.legend()
figure.tight_layout()

# %%
# In training
# -----------
#
# ``step="prepare"`` rounds in each forward pass; gradients pass straight through, and weights stay in float32.
# ``step="convert"`` rounds the weights at the end.

train_loader = DataLoader(build_dataset(data, "train", seed=0), batch_size=64, shuffle=True)
for name, config in formats.items():
    torch.manual_seed(0)
    model = copy.deepcopy(source).train()
    vitfast.quantize_(model, vitfast.QATConfig(config, step="prepare"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    for _epoch in range(4):
        for images, labels in train_loader:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    vitfast.quantize_(model.eval(), vitfast.QATConfig(step="convert"))
    results[f"{name}\ntrained"] = accuracy(model)

figure, axes = plt.subplots(figsize=(7, 3))
bars = axes.bar(list(results), [100 * value for value in results.values()])
axes.bar_label(bars, fmt="%.1f")
axes.set(ylim=(0, 110), ylabel="test images right, %")
figure.tight_layout()

# %%
# One of the 360 test images is 0.28 points. Half precision costs nothing here; six bits cost accuracy after training,
# and training in the format gets most of it back. The trained models had four more epochs than float32.
#
# ``vitfast quantize checkpoint=RUN format=FP16_16`` does the same on the command line:
# :doc:`all formats </docs/guides/quantize>`.
