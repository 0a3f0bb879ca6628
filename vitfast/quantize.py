"""Quantizes a checkpoint: ``python -m vitfast.quantize checkpoint=runs/… format=FP16_32 [key=value …]``.

Measures accuracy in float32 and in the format, prints what every layer loses, and writes a checkpoint whose weights are
stored in 8 or 16 bits. ``evaluate``, ``predict`` and ``visualize`` take it as any other. A checkpoint of
quantization-aware training (``python -m vitfast.train quantize.format=FP16_32``) says its format itself.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the verb.

    Args:
        argv: options; None takes the command line's.

    Returns:
        The exit code: 0, or 2 after an error that the user can mend.
    """
    from vitfast.commands.run_command import run_command

    return run_command(_quantize, sys.argv[1:] if argv is None else argv)


def _quantize(arguments: Sequence[str]) -> int:
    from vitfast.config import load_options
    from vitfast.evaluation.post_training import QuantizeOptions, quantize_checkpoint

    print(quantize_checkpoint(load_options(QuantizeOptions, list(arguments), "python -m vitfast.quantize")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
