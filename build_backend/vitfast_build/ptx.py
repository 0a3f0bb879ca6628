"""Assembles the PTX of a build for newer GPUs, as the driver does there.

``python -m vitfast_build.ptx [build]`` needs a build with PTX (``TORCH_CUDA_ARCH_LIST=8.0+PTX``). It prints the kernels
that spill on a newer GPU, and fails if one cannot be assembled.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

from vitfast_build.cuda_toolkit import CudaToolkit, find_toolkit
from vitfast_build.native_build import PTXAS_LOG_SUFFIX
from vitfast_build.options import BuildError
from vitfast_build.resources import KernelResources, parse_report
from vitfast_build.static_cost import find_cuobjdump

NEWER_ARCHITECTURES = ("sm_100", "sm_120")  # data center and consumer Blackwell


def main(arguments: list[str]) -> int:
    """Assembles every object file of a build folder; returns 1 if there is no PTX, or ptxas refuses it."""
    try:
        toolkit = find_toolkit(os.environ)
        if toolkit is None:
            raise BuildError("there is no nvcc: export CUDA_HOME=/usr/local/cuda")
        kernels = assemble(Path(arguments[0] if arguments else "build"), toolkit)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for kernel in kernels:
        if kernel.spill_bytes:
            print(f"{kernel.architecture:8} {kernel.spill_bytes:5} bytes spilled  {kernel.name}")
    for architecture in NEWER_ARCHITECTURES:
        print(f"{architecture}: {sum(kernel.architecture == architecture for kernel in kernels)} kernels assembled")
    return 0


def assemble(folder: Path, toolkit: CudaToolkit) -> list[KernelResources]:
    """Runs ptxas on the PTX in the object files below a folder.

    Returns:
        The resources of each kernel on each of ``NEWER_ARCHITECTURES``.

    Raises:
        BuildError: there is no PTX, or ptxas fails.
    """
    cuobjdump = find_cuobjdump(toolkit)
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(os.cpu_count()) as pool:
        files = []
        for report in sorted(folder.rglob(f"*{PTXAS_LOG_SUFFIX}")):
            extracted = Path(temporary, report.name)
            extracted.mkdir()
            _run([cuobjdump, "-xptx", "all", report.with_suffix("").resolve()], extracted)
            files += sorted(extracted.glob("*.ptx"))
        if not files:
            raise BuildError(f"no PTX below {folder}: build with VITFAST_CUDA=1 TORCH_CUDA_ARCH_LIST=8.0+PTX first")

        def report_of(job: tuple[Path, str]) -> list[KernelResources]:
            path, architecture = job
            command: list[str | Path] = [
                toolkit.folder / "bin/ptxas",
                "-v",
                f"-arch={architecture}",
                path.name,
                "-o",
                os.devnull,
            ]
            return parse_report(_run(command, path.parent))

        reports = pool.map(report_of, product(files, NEWER_ARCHITECTURES))
        return [kernel for report in reports for kernel in report]


def _run(command: list[str | Path], folder: Path) -> str:
    answer = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True)
    if answer.returncode:
        raise BuildError(f"{' '.join(map(str, command))} failed:\n{(answer.stderr or answer.stdout).strip()}")
    return answer.stdout + answer.stderr


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
