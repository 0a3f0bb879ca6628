"""Early exit, and choosing thresholds
===================================

A Dynamic Vision Transformer answers at several exits. Easy images leave at the first one, and cost less.
"""

# %%
# A model with two exits
# ----------------------
#
# ``dvt_nano_16`` reads an image as 2 x 2 tokens, then as 4 x 4. It is trained on the handwritten digits of the package.

import tempfile

import matplotlib.pyplot as plt
import torch
from torch.utils.data import DataLoader

import vitfast
from vitfast import train
from vitfast.config import load_config
from vitfast.data import build_dataset

run = tempfile.mkdtemp() + "/dvt"
train.main(["model.name=dvt_nano_16", "schedule.epochs=8", "schedule.warmup_epochs=1", f"run_dir={run}"])
model = vitfast.create_model(checkpoint=run).eval()

# %%
# Thresholds for a budget
# -----------------------
#
# An image leaves at the first exit whose top probability reaches the threshold. ``calibrate_exits`` finds the
# thresholds that are most accurate within a budget, on images that the model was not trained on: here the validation
# split. Where several thresholds are equally accurate, as often with only 144 images, it takes the cheapest, which may
# stay below the budget.

data = load_config([]).data
held_out = DataLoader(build_dataset(data, "val", seed=0), batch_size=64)
images, labels = next(iter(DataLoader(build_dataset(data, "test", seed=0), batch_size=360)))  # all of them

costs = vitfast.inference.early_exit.exit_gmacs(model)
print("GMACs up to each exit:", [f"{cost:.5f}" for cost in costs])


def measure(thresholds):
    """Returns the mean cost of a test image in GMACs and the share of right answers."""
    logits, exit_index = vitfast.EarlyExit(model, thresholds)(images)
    cost = sum(costs[index] for index in exit_index.tolist()) / len(images)
    return cost, (logits.argmax(1) == labels).float().mean().item()


budget = 1.5 * costs[0]
chosen = vitfast.calibrate_exits(model, held_out, budget_gmacs=budget)
print(f"budget {budget:.5f} GMACs: threshold {chosen[0]:.3f}; cost and accuracy on the test images:", measure(chosen))

# %%
# Accuracy against cost
# ---------------------
#
# From threshold 0, where all images leave at the first exit, to 2, where none does.

curve = [measure([threshold, 0.0]) for threshold in (0, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 2)]
figure, axes = plt.subplots(figsize=(6, 3))
axes.plot([1e3 * cost for cost, _ in curve], [100 * right for _, right in curve], ".-", label="thresholds 0 to 2")
axes.plot(1e3 * measure(chosen)[0], 100 * measure(chosen)[1], "o", label="calibrate_exits")
axes.axvline(1e3 * budget, color="gray", linestyle=":", label="budget")
axes.set(xlabel="mean cost of an image in MMACs", ylabel="test images right, %")
axes.legend()
figure.tight_layout()

# %%
# Easy and hard digits
# --------------------
#
# The images that are most and least certain at the first exit.

with torch.inference_mode():
    certainty = model(images)[0].softmax(1).amax(1)
order = certainty.argsort(descending=True)
figure, grid = plt.subplots(2, 8, figsize=(8, 2.6))
for row, (title, chosen) in zip(grid, (("easy", order[:8]), ("hard", order[-8:])), strict=True):
    for axes, index in zip(row, chosen, strict=True):
        axes.imshow(images[index, 0], cmap="gray_r")
        axes.set(xticks=[], yticks=[])
        axes.set_title(f"{certainty[index]:.2f}", fontsize=8)
    row[0].set_ylabel(title)
figure.tight_layout()

# %%
# ``vitfast exits checkpoint=RUN budget_gmacs=…`` stores thresholds with the checkpoint, and ``predict`` uses them then:
# :doc:`the guide </docs/guides/early_exit>`.
