"""Measures speed: ``python -m vitfast.benchmark [model=NAME,…] [batch=1,8] [precision=fp32,bf16] [key=value …]``."""

from vitfast.cli import entry_point

main = entry_point("benchmark")

if __name__ == "__main__":
    raise SystemExit(main())
