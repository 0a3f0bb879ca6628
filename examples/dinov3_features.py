"""Draws the three main components of DINOv3's patch features as colors.

python examples/dinov3_features.py facebook/dinov3-vits16-pretrain-lvd1689m IMAGE features.png
"""

import sys

import torch
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image
from transformers import AutoImageProcessor, AutoModel

import vitfast
from vitfast.data import load_image


def main(name: str, path: str, target: str) -> None:
    """Reads the image ``path`` and writes the picture ``target``."""
    model = vitfast.accelerate(AutoModel.from_pretrained(name))
    image = load_image(path)
    pixels = AutoImageProcessor.from_pretrained(name)(images=image, return_tensors="pt")["pixel_values"]
    (features,) = model.get_intermediate_layers(pixels, n=1, reshape=True)  # [1, C, H, W]
    patches = features[0].flatten(1).T  # [H * W, C]
    colors = (patches - patches.mean(0)) @ torch.pca_lowrank(patches, q=3)[2]
    colors = torch.sigmoid(2 * colors / colors.std(0)).T.unflatten(1, features.shape[2:])
    to_pil_image(colors).resize(image.size, Image.Resampling.NEAREST).save(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
