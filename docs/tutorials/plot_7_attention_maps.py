"""Attention maps
==============

Where does a model look? Attention rollout multiplies the attention of all layers (Abnar and Zuidema, 2020) and gives
the share of each patch in the class token.
"""

# %%
# A model and its images
# ----------------------
#
# Each image is a canvas of 32 x 32 with a handwritten digit of the package in one place and noise everywhere. A small
# ViT learns which of four digits it is, in a plain training loop of PyTorch.

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch.nn import functional as F

import vitfast
from vitfast.data.digits import Digits
from vitfast.inference.attention_rollout import attention_grid

torch.manual_seed(0)
source = Digits("train")
digits = torch.stack([torch.from_numpy(np.array(source.read(index, 1))) for index in range(len(source.labels))])
labels = torch.tensor(source.labels)
digits, labels = digits[labels < 4], labels[labels < 4]
digits = F.interpolate(digits[:, None], scale_factor=2)  # [N, 1, 16, 16]


def draw(index):
    """Returns canvases [B, 1, 32, 32] with the digits ``index`` at random places, multiples of 4 pixels."""
    canvas = 0.3 * torch.rand(len(index), 1, 32, 32)
    for image, one in zip(canvas, index.tolist(), strict=True):
        y, x = (4 * torch.randint(0, 5, (2,))).tolist()
        image[:, y : y + 16, x : x + 16] += digits[one]
    return canvas - 0.3


fields = {"in_chans": 1, "embed_dim": 64, "depth": 3, "num_heads": 4}
model = vitfast.create_model("vit_mini_patch4_32", num_classes=4, **fields)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
steps = 300
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
losses = []
for _ in range(steps):
    index = torch.randint(0, len(labels), (32,))
    loss = F.cross_entropy(model(draw(index)), labels[index])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    losses.append(loss.item())
print(f"loss of the first 20 steps {np.mean(losses[:20]):.2f}, of the last 20 {np.mean(losses[-20:]):.2f}")

# %%
# Maps and rollout
# ----------------
#
# ``attention_maps`` returns the attention of every layer, ``[B, heads, tokens, tokens]``, also where fused kernels run.

model.eval()
chosen = torch.arange(0, len(labels), 90)[:6]
images = draw(chosen)
with torch.inference_mode():
    maps = vitfast.attention_maps(model, images)
    predicted = model(images).argmax(1)
rollout = attention_grid(vitfast.attention_rollout(maps))  # [B, 8, 8]: the share of each patch in the class token

figure, rows = plt.subplots(2, 6, figsize=(9, 3.4))
for column, (image, grid, label) in enumerate(zip(images, rollout, predicted.tolist(), strict=True)):
    rows[0, column].imshow(image[0], cmap="gray_r")
    rows[0, column].set_title(f"predicted: {label}", fontsize=9)
    rows[1, column].imshow(grid, cmap="viridis")
    for axes in rows[:, column]:
        axes.axis("off")
figure.tight_layout()

# %%
# Heads of the last layer
# -----------------------
#
# What the class token reads in each head, for the first image.

figure, row = plt.subplots(1, 4, figsize=(8, 2.3))
for head, axes in enumerate(row):
    axes.imshow(attention_grid(maps[-1][:1, head])[0], cmap="viridis")
    axes.set_title(f"head {head}", fontsize=9)
    axes.axis("off")
figure.tight_layout()

# %%
# ``vitfast visualize checkpoint=RUN images=photo.jpg target=FOLDER`` draws them over your photographs:
# :doc:`the guide </docs/guides/attention_maps>`.
