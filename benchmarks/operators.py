"""How fast is each of vitfast's operators compared with torch's, at the shapes of real models?

    python benchmarks/operators.py [key=value …] json=benchmarks/results/operators-MACHINE.json

About five minutes; ``backward=true`` measures forward and backward together, ``cold_cache=true`` with inputs that come
from memory. The options are those of ``python -m vitfast.benchmark``; given options replace these defaults.
"""

from __future__ import annotations

import sys

from vitfast.benchmark import main

DEFAULTS = [
    "mode=operators",
    "model=vit_tiny_patch16_224,vit_base_patch16_224,vit_base_patch32_224",
    "batch=1,8",
    "precision=fp32,bf16",
    "seconds=240",
]

if __name__ == "__main__":
    sys.exit(main([*DEFAULTS, *sys.argv[1:]]))
