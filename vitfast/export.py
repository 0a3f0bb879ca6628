"""Writes a model for deployment: ``python -m vitfast.export checkpoint=runs/… path=model.vit``."""

import sys
from types import ModuleType
from typing import Any

from vitfast.cli import entry_point

main = entry_point("export")


class _Callable(ModuleType):
    """This module has the name of the function ``vitfast.export``, and after its import takes the place of it."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from vitfast.inference.export import export

        return export(*arguments, **options)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    raise SystemExit(main())
