"""Writer of build.ninja."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from vitfast_build.sources import Source


class NinjaFile:
    """A build.ninja file with at most ``cuda_jobs`` parallel nvcc."""

    def __init__(self, *, cuda_jobs: int) -> None:
        self._lines = ["ninja_required_version = 1.5", "", "pool cuda", f"  depth = {cuda_jobs}", ""]

    def compile_rule(self, name: str, command: Sequence[str], *, after: str = "", pool: str = "") -> None:
        """Adds a rule that compiles one file and records its header dependencies.

        Args:
            name: the name of the rule.
            command: the compiler and the flags common to all files.
            after: shell text appended to the command; $out is the object file.
            pool: the pool that limits parallel jobs.
        """
        self._lines += [
            f"rule {name}",
            f"  command = {_command(command)} $flags -MD -MF $out.d -c $in -o $out{after}",
            "  description = compile $in $flags",
            "  depfile = $out.d",
            "  deps = gcc",
            *([f"  pool = {pool}"] if pool else []),
            "",
        ]

    def link_rule(self, name: str, command: Sequence[str], libraries: Sequence[str]) -> None:
        """Adds a rule that links a shared library; ``libraries`` follow the object files."""
        self._lines += [
            f"rule {name}",
            f"  command = {_command(command)} $in -o $out {_command(libraries)}",
            "  description = link $out",
            "",
        ]

    def library(self, output: str, sources: Iterable[Source], root: Path, *, compile_rule: str, link_rule: str) -> None:
        """Adds the edges of a library and of its object files."""
        objects = []
        for source in sources:
            target = _object_name(compile_rule, source)
            self._lines.append(f"build {_path(target)}: {compile_rule} {_path(str(root / source.path))}")
            if source.flags:
                self._lines.append(f"  flags = {_command(source.flags)}")
            objects.append(_path(target))
        self._lines += [f"build {_path(output)}: {link_rule} {' '.join(objects)}", f"default {_path(output)}", ""]

    def text(self) -> str:
        """The contents of the file."""
        return "\n".join(self._lines)


def _object_name(rule: str, source: Source) -> str:
    instance = f".{source.instance}" if source.instance else ""
    return f"objects/{rule}/{source.path}{instance}.o"


def _command(words: Sequence[str]) -> str:
    """Quotes words for the shell and then for ninja."""
    return shlex.join(words).replace("$", "$$")


def _path(text: str) -> str:
    return text.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
