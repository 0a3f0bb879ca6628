"""Checks and times the CUDA kernels on this GPU: ``python -m vitfast.verify [quick=true] [repeat=true]``."""

import sys
from types import ModuleType
from typing import Any

from vitfast.cli import entry_point

main = entry_point("verify")


class _CallableModule(ModuleType):
    """``vitfast.verify`` is a public function; after an import of this module, which hides it, it is the module."""

    def __call__(self, **options: Any) -> dict[str, Any]:
        from vitfast.benchmarking.verification import verify

        return verify(**options)


sys.modules[__name__].__class__ = _CallableModule

if __name__ == "__main__":
    raise SystemExit(main())
