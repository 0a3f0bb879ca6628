"""The public names: the lazy table of `__init__.py`, the stub beside it, and what `import vitfast` resolves."""

from __future__ import annotations

import ast
import importlib.resources
import pickle

import pytest

import vitfast
from vitfast.formats import FloatFormat


def test_the_stub_lists_the_lazy_table() -> None:
    stub = ast.parse(importlib.resources.files(vitfast).joinpath("__init__.pyi").read_text())
    declared = {
        alias.asname: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert declared == vitfast._PUBLIC_NAMES
    assert set(vitfast.__all__) == {*declared, "__version__"}


@pytest.mark.parametrize("name", vitfast.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(vitfast, name) is not None


def test_an_unknown_name_is_named() -> None:
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = vitfast.quantise  # type: ignore[attr-defined]


def test_the_package_is_marked_as_typed() -> None:
    assert importlib.resources.files(vitfast).joinpath("py.typed").is_file()


def test_formats_pickled_under_their_earlier_path_load() -> None:
    pickled = pickle.dumps(FloatFormat.fp16(), protocol=0)
    earlier = pickled.replace(b"vitfast.formats", b"vitfast.quantization.formats")
    assert earlier != pickled
    assert pickle.loads(earlier) == FloatFormat.fp16()
