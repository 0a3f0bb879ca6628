"""A timm model, several times faster on this CPU, in one line.

    python examples/accelerate_timm.py [MODEL] [PRECISION] [BATCH]

Accelerates one of timm's Vision Transformers (default: vit_tiny_patch16_224 in bf16, batches of 8), says what runs each
layer and how well the results agree, and measures both models in alternation. Weights are random: give
``pretrained=True`` below where timm may download.
"""

from __future__ import annotations

import statistics
import sys
import time

import timm
import torch

import vitfast


def main(name: str = "vit_tiny_patch16_224", precision: str = "bf16", batch: str = "8") -> None:
    """Runs the example.

    Args:
        name: of a timm model.
        precision: "fp32", "bf16", "fp16_32" or "int8".
        batch: images in a batch.
    """
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).eval()
    images = torch.randn(int(batch), *model.pretrained_cfg["input_size"])

    fast = vitfast.accelerate(model, precision, check=images)
    print(fast.report())

    seconds: dict[str, list[float]] = {"timm, fp32": [], f"vitfast, {precision}": []}
    with torch.inference_mode():
        for _ in range(7):
            for (_, samples), candidate in zip(seconds.items(), (model, fast), strict=True):
                start = time.perf_counter()
                candidate(images)
                samples.append(time.perf_counter() - start)
    medians = {label: statistics.median(samples[1:]) for label, samples in seconds.items()}  # the first run warms up
    for label, median in medians.items():
        print(f"{label}: {int(batch) / median:.1f} images/s")
    slow, quick = medians.values()
    print(f"{slow / quick:.2f} times as fast")


if __name__ == "__main__":
    main(*sys.argv[1:])
