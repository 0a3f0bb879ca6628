"""Writer of build.ninja."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from vitfast_build.sources import Source


class NinjaFile:
    """A build.ninja file for the sources below ``root``, with at most ``cuda_jobs`` parallel nvcc."""

    def __init__(self, root: Path, *, cuda_jobs: int) -> None:
        self._root = root
        self._lines = ["ninja_required_version = 1.5", "", "pool cuda", f"  depth = {cuda_jobs}", ""]

    def compile_rule(self, name: str, command: Sequence[str], *, after: str = "", pool: str = "") -> None:
        """Adds a rule that compiles one file and records its header dependencies.

        ``after`` is shell text appended to the command; $out is the object file. ``pool`` limits parallel jobs.
        """
        self._lines += [
            f"rule {name}",
            f"  command = {_command(command)} $flags -MD -MF $out.d -c $in -o $out{after}",
            "  description = $source",
            "  depfile = $out.d",
            "  deps = gcc",
            *([f"  pool = {pool}"] if pool else []),
            "",
        ]

    def link_rule(self, name: str, command: Sequence[str], libraries: Sequence[str]) -> None:
        """Adds the rule ``link_<name>``, which links a shared library; ``libraries`` follow the object files."""
        self._lines += [
            f"rule link_{name}",
            f"  command = {_command(command)} $in -o $out {_command(libraries)}",
            "  description = $out",
            "",
        ]

    def library(self, output: str, sources: Iterable[Source], rule: str) -> None:
        """Adds the edges of a library and of its object files, by ``rule`` and ``link_<rule>``."""
        self.link(output, self.objects(sources, rule), rule)

    def objects(self, sources: Iterable[Source], rule: str) -> list[str]:
        """Adds the edges of object files by ``rule``; returns their names."""
        objects = []
        for source in sources:
            objects.append(_path(f"objects/{rule}/{source.path}.o"))
            self._lines.append(f"build {objects[-1]}: {rule} {_path(str(self._root / source.path))}")
            self._lines.append(f"  source = {_text(source.path)}")
            if source.flags:
                self._lines.append(f"  flags = {_command(source.flags)}")
        return objects

    def link(self, output: str, objects: Sequence[str], rule: str) -> None:
        """Adds the edge of a library, by ``link_<rule>``."""
        self._lines += [f"build {_path(output)}: link_{rule} {' '.join(objects)}", f"default {_path(output)}", ""]

    def text(self) -> str:
        """The contents of the file."""
        return "\n".join(self._lines)


def _command(words: Sequence[str]) -> str:
    """Quotes words for the shell and then for ninja."""
    return _text(shlex.join(words))


def _text(text: str) -> str:
    return text.replace("$", "$$")


def _path(text: str) -> str:
    return text.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
