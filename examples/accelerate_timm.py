"""Accelerates a timm model on this CPU.

    python examples/accelerate_timm.py [MODEL] [PRECISION] [BATCH] [FOLDER]

Accelerates one of timm's Vision Transformers (default: vit_tiny_patch16_224 in bf16, batches of 8), prints what runs
each layer and how well the results agree, and times both models in alternation. Agreement is measured on photographs
in FOLDER, if given, else on noise. Weights are random; set ``pretrained=True`` below if timm may download them.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import timm
import timm.data
import torch
from torch import Tensor, nn

import vitfast
from vitfast.data import load_image


def main(name: str = "vit_tiny_patch16_224", precision: str = "bf16", batch: str = "8", folder: str = "") -> None:
    """Runs the example.

    Args:
        name: name of a timm model.
        precision: "fp32", "bf16", "fp16_32" or "int8".
        batch: images in a batch.
        folder: folder of photographs, searched recursively; empty: noise.
    """
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).eval()
    images = torch.randn(int(batch), *model.pretrained_cfg["input_size"])

    fast = vitfast.accelerate(model, precision, check=read_photographs(model, folder) if folder else images)
    print(fast.report())

    seconds: dict[str, list[float]] = {"timm, fp32": [], f"vitfast, {precision}": []}
    with torch.inference_mode():
        for _ in range(7):
            for (_, samples), candidate in zip(seconds.items(), (model, fast), strict=True):
                start = time.perf_counter()
                candidate(images)
                samples.append(time.perf_counter() - start)
    medians = {label: statistics.median(samples[1:]) for label, samples in seconds.items()}  # the first run warms up
    print(f"batch {batch}, CPU threads: {torch.get_num_threads()}")
    for label, median in medians.items():
        print(f"  {label}: {int(batch) / median:.1f} images/s")
    slow, quick = medians.values()
    print(f"  {slow / quick:.2f} times as fast")


def read_photographs(model: nn.Module, folder: str) -> Tensor:
    """Reads and preprocesses all photographs in a folder, ``[B, 3, H, W]``."""
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    suffixes = (".jpg", ".jpeg", ".png")
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in suffixes)
    if not paths:
        raise SystemExit(f"{folder}: it contains no photographs ({', '.join(suffixes)})")
    return torch.stack([transform(load_image(path)) for path in paths])


if __name__ == "__main__":
    main(*sys.argv[1:])
