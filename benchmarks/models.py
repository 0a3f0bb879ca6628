"""How fast does each library run a Vision Transformer?

    python benchmarks/models.py [key=value …] json=benchmarks/results/models-MACHINE.json

Small to large models, latency (a single image) and throughput; about five minutes. The options are those of
``python -m vitfast.benchmark``; given options replace these defaults.
"""

from __future__ import annotations

import sys

from vitfast.benchmark import main

DEFAULTS = [
    "mode=inference",
    "model=vit_tiny_patch16_224,vit_small_patch16_224,vit_base_patch16_224",
    "batch=1,8",
    "precision=fp32,bf16",
    "seconds=240",
]

if __name__ == "__main__":
    sys.exit(main([*DEFAULTS, *sys.argv[1:]]))
