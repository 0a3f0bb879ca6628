"""Measures speed: ``python -m vitfast.benchmark [model=NAME,…] [batch=1,8] [precision=fp32,bf16] [key=value …]``."""

import sys

from vitfast.commands.run_command import EntryPoint

main = EntryPoint("benchmark")

if __name__ == "__main__":
    sys.exit(main())
