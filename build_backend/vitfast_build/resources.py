"""Registers and spills of each kernel, from the ptxas reports of a build.

``python -m vitfast_build.resources build`` prints the reports in a build folder and fails on a spill.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from vitfast_build.native_build import PTXAS_LOG_SUFFIX

_KERNEL = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'(.*?)Used (\d+) registers", re.DOTALL)
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


@dataclass(frozen=True)
class KernelResources:
    """Resources of a kernel on an architecture; bytes are per thread."""

    name: str
    architecture: str
    registers: int
    stack_bytes: int
    spill_bytes: int


def parse_report(text: str) -> list[KernelResources]:
    """Parses the output of ``ptxas -v``."""
    kernels = []
    for name, architecture, properties, registers in _KERNEL.findall(text):
        stack, stores, loads = map(int, _FRAME.findall(properties)[-1])
        kernels.append(KernelResources(name, architecture, int(registers), stack, stores + loads))
    return kernels


def main(arguments: list[str]) -> int:
    """Prints the kernels of a build folder; returns 1 if there are none, or one spills."""
    folder = Path(arguments[0] if arguments else "build")
    reports = sorted(folder.rglob(f"*{PTXAS_LOG_SUFFIX}"))
    kernels = [kernel for report in reports for kernel in parse_report(report.read_text())]
    if not kernels:
        print(f"error: no {PTXAS_LOG_SUFFIX} report below {folder}: build with VITFAST_CUDA=1 first", file=sys.stderr)
        return 1
    for kernel, name in zip(kernels, readable_names([kernel.name for kernel in kernels]), strict=True):
        print(f"{kernel.architecture:8} {kernel.registers:4} registers {kernel.spill_bytes:5} bytes spilled  {name}")
    spilling = [kernel for kernel in kernels if kernel.spill_bytes or kernel.stack_bytes]
    print(f"{len(kernels)} kernels, {len(spilling)} of them spill or use the stack")
    return 1 if spilling else 0


def readable_names(names: list[str]) -> list[str]:
    """Demangles C++ names, if c++filt is installed."""
    if shutil.which("c++filt") is None:
        return names
    return subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True).stdout.splitlines()


def short_name(name: str) -> str:
    """A readable name without the namespace and the function's arguments."""
    return name.removeprefix("void vitfast::").split(">(")[0] + ">"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
