from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from vitfast_build.options import BuildError
from vitfast_build.toolchain import check_setuptools, find_compiler, find_ninja, is_x86


def test_the_path_is_searched_for_a_compiler(program: Callable[..., Path]) -> None:
    gxx = program("g++", "echo 'g++ 99.1'")
    compiler = find_compiler({"PATH": f"{gxx.parent}:/nowhere", "CXXFLAGS": "-g -fsanitize=address"})
    assert compiler.command == ("g++",)
    assert compiler.version == "g++ 99.1"
    assert compiler.flags == ("-g", "-fsanitize=address")


def test_cxx_names_the_compiler_and_a_cache_is_not_nvccs_host_compiler(program: Callable[..., Path]) -> None:
    cache = program("ccache", "echo 'clang 20'")
    compiler = find_compiler({"PATH": str(cache.parent), "CXX": f"{cache} clang++-20"})
    assert compiler.command == (str(cache), "clang++-20")
    assert compiler.program == "clang++-20"


def test_no_compiler_is_one_message_with_the_commands(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"No C\+\+ compiler.*\n.*apt-get install g\+\+(.|\n)*VITFAST_BUILD=none"):
        find_compiler({"PATH": str(tmp_path)})


@pytest.mark.parametrize("named", ["/nowhere/g++", "false"])
def test_a_cxx_that_does_not_run_is_named(named: str) -> None:
    with pytest.raises(BuildError, match=rf"{re.escape(named)} \(from CXX\) does not run(.|\n)*export CXX=g\+\+"):
        find_compiler({"PATH": "/usr/bin:/bin", "CXX": named})


def test_ninja_is_found_or_reported_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import importlib.util

    assert Path(find_ninja({"PATH": "/usr/bin:/bin"})).exists()
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ninja" else find_spec(name))
    with pytest.raises(BuildError, match=r"ninja is not installed\.\nInstall it: .*pip install ninja"):
        find_ninja({"PATH": str(tmp_path)})


def test_old_setuptools_error_names_the_upgrade_command() -> None:
    check_setuptools("77.0.3")
    with pytest.raises(BuildError, match=r'setuptools 65\.5\.0 is too old(.|\n)*--upgrade "setuptools>=77"'):
        check_setuptools("65.5.0")


def test_only_x86_has_a_choice_of_instruction_sets() -> None:
    assert is_x86("x86_64")
    assert is_x86("AMD64")
    assert not is_x86("aarch64")
