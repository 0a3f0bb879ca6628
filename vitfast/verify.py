"""Checks and times the CUDA kernels on this GPU: ``python -m vitfast.verify [quick=true] [repeat=true]``."""

from vitfast.cli import entry_point, make_callable

main = entry_point("verify")
make_callable(__name__, "vitfast.benchmarking.verification")

if __name__ == "__main__":
    raise SystemExit(main())
