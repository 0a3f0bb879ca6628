"""Compares images by their CLIP embeddings.

    python examples/clip_embeddings.py openai/clip-vit-base-patch32 IMAGE IMAGE [...]

The model is a folder or a name on the Hugging Face hub. Prints the cosine similarity of each pair.
"""

import sys

from transformers import AutoImageProcessor, CLIPVisionModelWithProjection

import vitfast
from vitfast.data import load_image


def main(name: str, *paths: str) -> None:
    """Prints a table of similarities."""
    model = vitfast.accelerate(CLIPVisionModelWithProjection.from_pretrained(name))
    images = [load_image(path) for path in paths]
    pixels = AutoImageProcessor.from_pretrained(name)(images=images, return_tensors="pt")["pixel_values"]
    embeddings = model.embed(pixels, normalize=True)
    for path, row in zip(paths, embeddings @ embeddings.T, strict=True):
        print(*(f"{value:6.3f}" for value in row.tolist()), path)


if __name__ == "__main__":
    main(*sys.argv[1:])
