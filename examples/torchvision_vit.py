"""Accelerates a Vision Transformer of torchvision and classifies images.

    python examples/torchvision_vit.py IMAGE [IMAGE ...]

Downloads torchvision's weights on the first call.
"""

import sys

import torch
from torchvision.models import ViT_B_16_Weights, vit_b_16

import vitfast
from vitfast.data import load_image


def main(*paths: str) -> None:
    """Prints the class of each image and its probability."""
    weights = ViT_B_16_Weights.DEFAULT
    transform = weights.transforms()
    model = vitfast.accelerate(vit_b_16(weights=weights), precision="bf16")
    logits = model(torch.stack([transform(load_image(path)) for path in paths]))
    for path, row in zip(paths, logits.softmax(dim=1), strict=True):
        print(f"{path}: {weights.meta['categories'][int(row.argmax())]} {row.max():.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
