"""SwAV, and nearest neighbours
============================

SwAV trains features without labels. Similar images then have similar features, and a search finds them.
"""

# %%
# Train without labels
# --------------------
#
# Two random crops of an image must be assigned to the same prototype. The trunk is a small ResNet of timm, trained for
# three epochs. The images are the handwritten digits of the package; the labels are used by the measurement only.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch.utils.data import DataLoader

import vitfast
from vitfast import train
from vitfast.config import load_config
from vitfast.data import build_dataset

run = Path(tempfile.mkdtemp()) / "swav"
options = {
    "task": "swav",
    "model.name": "timm/resnet10t",
    "data.in_chans": 3,
    "data.batch_size": 64,
    "data.drop_last": "true",
    "data.augment.num_crops": "[2]",
    "data.augment.size_crops": "[16]",
    "data.augment.crop_scales": "[0.5,1.0]",
    "swav.projection": "[128,64]",
    "swav.prototypes": "[30]",
    "swav.freeze_prototypes_steps": 20,
    "optim.lr": 1.5e-3,
    "optim.label_smoothing": 0,
    "schedule.epochs": 3,
    "schedule.warmup_epochs": 0.5,
    "run_dir": run,
}
train.main([f"{name}={value}" for name, value in options.items()])

# %%
# Features
# --------
#
# The result is a model without a head: its output is the feature of an image.

model = vitfast.create_model(checkpoint=run).eval()
untrained = vitfast.create_model("timm/resnet10t", num_classes=0).eval()
data = load_config(["data.in_chans=3"]).data


def read(split):
    """Returns all images of a split and their labels."""
    dataset = build_dataset(data, split, seed=0, augment=False)
    return next(iter(DataLoader(dataset, batch_size=len(dataset))))


(images, labels), (queries, answers) = read("train"), read("test")
found = {}
for name, network in (("pixels", torch.nn.Flatten()), ("random weights", untrained), ("SwAV", model)):
    with torch.inference_mode():
        neighbours = vitfast.knn(network(images), network(queries), k=8)
    found[name] = neighbours.row
    right = (labels[neighbours.row[:, 0]] == answers).float().mean().item()
    print(f"{name}: the nearest image has the right label for {right:.1%} of the test images")

# %%
# Nearest neighbours
# ------------------
#
# Left a test image, then the training images with the most similar features.

figure, rows = plt.subplots(5, 9, figsize=(8, 4.6))
for row, query in zip(rows, range(0, 360, 75), strict=False):
    for axes, image in zip(row, (queries[query], *images[found["SwAV"][query]]), strict=True):
        axes.imshow(image[0], cmap="gray_r")
        axes.axis("off")
    row[0].set_title("query", fontsize=8)
figure.tight_layout()

# %%
# This run shows the calls, not what SwAV can learn: after three epochs its features are hardly better than those of
# random weights (one of the 360 test images is 0.28 points), and digits are so easy that their pixels are better than
# both. On photographs SwAV is better than both
# (:doc:`measured on CIFAR-10 </benchmarks/results/swav_small_cifar10_32px/README>`). For folders of photographs,
# ``vitfast embed`` and ``vitfast search`` find neighbours :doc:`in large collections </docs/guides/large_collections>`.
