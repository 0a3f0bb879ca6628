"""Quantizes a checkpoint: ``python -m vitfast.quantize checkpoint=runs/… format=FP16_32 [key=value …]``."""

from vitfast.cli import entry_point

main = entry_point("quantize")

if __name__ == "__main__":
    raise SystemExit(main())
