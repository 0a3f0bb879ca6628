"""vitfast/_build_config.py: what was built, for what, and why not more. vitfast.build_info() shows it."""

from __future__ import annotations

import platform
import pprint
from pathlib import Path
from typing import Any

from vitfast_build.native_build import NativeBuild
from vitfast_build.options import BuildOptions
from vitfast_build.torch_installation import MIN_TORCH

FILE_NAME = "_build_config.py"


def describe(options: BuildOptions, native: NativeBuild | None) -> dict[str, Any]:
    """Describes a build as a dict that can be written as JSON; it holds no path of the machine.

    Args:
        options: what the user asked for.
        native: the native build, or None for pure PyTorch.

    Returns:
        ``cpu_library``, ``cuda_library`` (bool), ``instruction_sets``, ``cuda_architectures`` (lists), ``cuda_reason``,
        ``notes`` (list of lines), ``torch``, ``torch_at_least``, ``compiler``, ``nvcc`` (None: not used), ``machine``.
    """
    toolkit = native.cuda.toolkit if native else None
    notes = []
    if toolkit and options.left_out:
        left_out = ", ".join(map(str, options.left_out))
        notes.append(f"TORCH_CUDA_ARCH_LIST: left out {left_out}; the kernels need compute capability 8.0 or newer")
    if native and options.sanitize:
        notes.append("VITFAST_SANITIZE: with AddressSanitizer and UBSan, slow, and only under LD_PRELOAD of libasan.so")
    return {
        "cpu_library": native is not None,
        "cuda_library": toolkit is not None,
        "instruction_sets": list(native.sources.instruction_sets) if native else [],
        "cuda_architectures": [str(item) for item in options.architectures] if toolkit else [],
        "cuda_reason": native.cuda.reason if native else "VITFAST_BUILD=none",
        "notes": notes,
        "torch": native.torch.version if native else None,
        "torch_at_least": ".".join(map(str, MIN_TORCH)),
        "compiler": native.compiler.version if native else None,
        "nvcc": toolkit.version_text if toolkit else None,
        "machine": platform.machine(),
    }


def write(build: dict[str, Any], folder: Path) -> None:
    """Writes vitfast/_build_config.py into the package ``folder``."""
    text = pprint.pformat(build, width=110, sort_dicts=False)
    (folder / FILE_NAME).write_text(
        '"""What was built, for what, and why not more. Written by the build; vitfast.build_info() shows it."""\n\n'
        f"BUILD = {text}\n"
    )


def summary(build: dict[str, Any], jobs: int | None = None) -> str:
    """The lines that are printed at the end of a build."""
    if not build["cpu_library"]:
        return "vitfast: pure PyTorch, nothing compiled (VITFAST_BUILD=none): right, but slow"
    lines = [
        f"vitfast: built against torch {build['torch']} by {build['compiler']}, for torch >= {build['torch_at_least']}",
        f"  CPU library: {', '.join(build['instruction_sets'])}",
    ]
    if build["cuda_library"]:
        lines.append(f"  CUDA library: {'; '.join(build['cuda_architectures'])} by {build['cuda_reason']}")
    else:
        lines.append(f"  CUDA library: not built: {build['cuda_reason']}")
    lines += [f"  {note}" for note in build["notes"]]
    if jobs is not None:
        lines.append(f"  compilers at a time: {jobs}")
    return "\n".join(lines)
