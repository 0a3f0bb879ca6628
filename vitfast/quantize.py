"""Quantizes a checkpoint: ``python -m vitfast.quantize checkpoint=runs/… format=FP16_32 [key=value …]``."""

import sys

from vitfast.commands.run_command import EntryPoint

main = EntryPoint("quantize")

if __name__ == "__main__":
    sys.exit(main())
