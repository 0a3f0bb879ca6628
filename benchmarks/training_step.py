"""How long does a training step take with each library's model, everything else being the same?

    python benchmarks/training_step.py [key=value …] json=benchmarks/results/training_step-MACHINE.json

Forward, cross-entropy, backward and torch's AdamW; about four minutes. The options are those of
``python -m vitfast.benchmark``; given options replace these defaults.
"""

from __future__ import annotations

import sys

from vitfast.benchmark import main

DEFAULTS = [
    "mode=training",
    "model=vit_mini_patch4_32,vit_tiny_patch16_224,vit_small_patch16_224",
    "batch=32",
    "precision=fp32,bf16",
    "seconds=200",
]

if __name__ == "__main__":
    sys.exit(main([*DEFAULTS, *sys.argv[1:]]))
