"""Static cost of the hot CUDA kernels: what a warp spends in each loop, read from the machine code of a build.

``python -m vitfast_build.static_cost [build]`` writes ``csrc/cuda/static_cost.json`` for the architectures of the
build; ``--check`` compares instead, prints the differences and fails if there are any. The table is the measure of
performance until a GPU result is committed: docs/internals/cuda_kernels.md says how to read it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from vitfast_build.cuda_toolkit import CudaToolkit, find_toolkit
from vitfast_build.native_build import PTXAS_LOG_SUFFIX
from vitfast_build.options import BuildError
from vitfast_build.resources import parse_report, readable_names, short_name
from vitfast_build.sass import costs_by_loop, parse_sass
from vitfast_build.sources import ROOT

TABLE = ROOT / "csrc/cuda/static_cost.json"
_TRITON_TOOLS = Path("triton/backends/nvidia/bin")  # triton, on which torch depends, brings these tools of the toolkit

HOT_KERNELS = (
    "attention_forward_kernel<vitfast::Half, 64, 7, 13, vitfast::AttentionForward>",  # DVT's second exit
    "attention_forward_kernel<vitfast::Half, 64, 19, 25, vitfast::AttentionForward>",  # ViT at 224 pixels
    "attention_forward_kernel<vitfast::Half, 48, 19, 25, vitfast::GatedPositionalAttention>",  # ConViT
    "attention_wgmma_kernel<vitfast::Half, 19, 25>",  # ViT at 224 pixels, without bias and logits, on 9.0
    "attention_backward_kernel<vitfast::Half, vitfast::AttentionBackwardShape<vitfast::Half, 7, 2> >",
    "attention_backward_kernel<vitfast::Half, vitfast::AttentionBackwardShape<vitfast::Half, 13, 2> >",
    "layer_norm_forward_kernel<vitfast::Half, vitfast::Half, vitfast::Half, 3, vitfast::NoRounding>",  # 768 channels
    "layer_norm_forward_kernel<float, vitfast::Half, float, 3, vitfast::NoRounding>",  # autocast's
    "layer_norm_forward_kernel<float, float, float, 6, vitfast::RuleRounding<(vitfast::Rounding)0> >",
    "layer_norm_backward_kernel<vitfast::Half, vitfast::Half, vitfast::Half, 2>",
    "layer_norm_backward_kernel<vitfast::Half, vitfast::Half, vitfast::Half, 3>",
    "layer_norm_backward_kernel<float, vitfast::Half, float, 3>",
    "gemm_sm80<half_t, linear, 128, 128>",
    "gemm_sm80<half_t, gelu, 128, 128>",
    "gemm_sm80<half_t, gelu_gradient, 128, 128>",
    "gemm_sm90a<half_t, linear, 128, 192>",
    "gemm_sm90a<half_t, gelu, 128, 192>",
    "gemm_sm90a<half_t, gelu_gradient, 128, 128>",
    "epilogue_gradient_kernel<vitfast::Half>",
    "matmul_accumulate_kernel<(vitfast::Rounding)0>",
    "matmul_fp16_accumulation_kernel<false>",
    "round_elements_kernel<float, vitfast::FloatRounder<vitfast::Float32Bits, (vitfast::Rounding)0> >",
    "upsample_relations_kernel<vitfast::Half, 4>",
)

# rows and columns of the output tile, in the names of CUTLASS's kernels, which have a thousand characters
_GEMM_TILES = {
    "gemm_sm80": re.compile(r"GemmShapeILi(\d+)ELi(\d+)E"),
    # a second number that equals the first is a reference to it
    "gemm_sm90a": re.compile(r"WarpSpecialized[A-Z][a-z]+E+NS\w_IJNS\w_ILi(\d+)E+(?:NS\w_ILi(\d+)E|S\w_)"),
}
_GEMM_EPILOGUE = re.compile(r"GemmEpilogueE(\d)")
_GEMM_EPILOGUES = ("linear", "gelu", "gelu_tanh", "gelu_gradient")  # of csrc/linear/gemm.h

# Instructions of a kernel, of 16 bytes, that fit a multiprocessor's instruction cache: 128 KiB on Volta (Jia et al.,
# 2018). A GEMM with 15,000 was four times slower on an H100 than with 3,300, since it waited for instructions.
MAX_INSTRUCTIONS = 8192

Costs = dict[str, dict[str, float]]  # loop -> resource -> number
Table = dict[str, dict[str, Costs]]  # architecture -> kernel -> costs


def main(arguments: list[str]) -> int:
    """Writes or checks the table; returns 1 if it differs or the build has no kernels."""
    checks = "--check" in arguments
    folders = [argument for argument in arguments if argument != "--check"]
    try:
        toolkit = find_toolkit(os.environ)
        if toolkit is None:
            raise BuildError("there is no nvcc: export CUDA_HOME=/usr/local/cuda")
        found = measure(Path(folders[0] if folders else "build"), find_cuobjdump(toolkit))
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    committed: dict[str, Any] = {"nvcc": toolkit.version_text, "kernels": {}}
    if TABLE.exists():
        committed = json.loads(TABLE.read_text())
    if not checks:
        TABLE.write_text(_as_json({"nvcc": toolkit.version_text, "kernels": {**committed["kernels"], **found}}))
        print(f"{TABLE.name}: {', '.join(found)}")
        return 0
    changes = differences(committed["kernels"], found)
    print("\n".join(changes) or f"static cost of {', '.join(found)}: no change")
    if changes and committed["nvcc"] != toolkit.version_text:
        print(f"the table is of nvcc {committed['nvcc']}, this is {toolkit.version_text}: differences are not an error")
        return 0
    if changes:
        print("if they are intended: PYTHONPATH=build_backend python -m vitfast_build.static_cost build")
    return 1 if changes else 0


def measure(folder: Path, cuobjdump: Path) -> Table:
    """Costs of the hot kernels in a build folder.

    Raises:
        BuildError: no kernel was built, or one that is listed here is missing.
    """
    table: Table = {}
    for report in sorted(folder.rglob(f"*{PTXAS_LOG_SUFFIX}")):
        kernels = parse_report(report.read_text())
        readable = readable_names([kernel.name for kernel in kernels])
        names = [_gemm_name(kernel.name) or short_name(name) for kernel, name in zip(kernels, readable, strict=True)]
        hot = {kernel.name: name for kernel, name in zip(kernels, names, strict=True) if name in HOT_KERNELS}
        for architecture in sorted({kernel.architecture for kernel in kernels if kernel.name in hot}):
            code = parse_sass(_disassemble(cuobjdump, report.with_suffix(""), architecture, list(hot)))
            table.setdefault(architecture, {}).update(
                {
                    hot[name]: {loop: cost.as_dict() for loop, cost in costs_by_loop(code[name], architecture).items()}
                    for name in hot
                    if name in code
                }
            )
    if not table:
        raise BuildError(f"no {PTXAS_LOG_SUFFIX} report below {folder}: build with VITFAST_CUDA=1 first")
    for architecture, costs in table.items():
        missing = [name for name in hot_kernels(architecture) if name not in costs]
        if missing:
            raise BuildError(f"the build for {architecture} has no kernel {missing[0]}; change HOT_KERNELS")
        for name, loops in costs.items():
            instructions = sum(loop["issue"] for loop in loops.values())
            if instructions > MAX_INSTRUCTIONS:
                raise BuildError(
                    f"{name} for {architecture} has {instructions:.0f} instructions, more than the instruction cache "
                    f"holds ({MAX_INSTRUCTIONS}): unroll less, or make a template parameter of a choice at run time"
                )
    return table


def hot_kernels(architecture: str) -> list[str]:
    """The hot kernels of an architecture, such as ``sm_90a``, which alone has those that use wgmma."""
    others = ("gemm_sm80",) if architecture == "sm_90a" else ("gemm_sm90a", "attention_wgmma_kernel")
    return [name for name in HOT_KERNELS if not name.startswith(others)]


def differences(committed: Table, found: Table) -> list[str]:
    """One line for each number that differs, of the architectures in ``found``."""
    lines = []
    for architecture, kernels in found.items():
        before = committed.get(architecture, {})
        for kernel in sorted({*before, *kernels}):
            old, new = before.get(kernel, {}), kernels.get(kernel, {})
            for loop in sorted({*old, *new}):
                old_cost, new_cost = old.get(loop, {}), new.get(loop, {})
                changed = [
                    f"{resource} {old_cost.get(resource, 0)} -> {new_cost.get(resource, 0)}"
                    for resource in sorted({*old_cost, *new_cost})
                    if old_cost.get(resource, 0) != new_cost.get(resource, 0)
                ]
                if changed:
                    lines.append(f"{architecture} {kernel} loop {loop}: {', '.join(changed)}")
    return lines


def find_cuobjdump(toolkit: CudaToolkit) -> Path:
    """Finds cuobjdump, with nvdisasm beside it: the toolkit's, or that which triton brings."""
    folders = [toolkit.folder / "bin", Path(sysconfig.get_path("purelib")) / _TRITON_TOOLS]
    for folder in folders:
        if (folder / "cuobjdump").exists() and (folder / "nvdisasm").exists():
            return folder / "cuobjdump"
    raise BuildError(
        f"neither {folders[0]} nor {folders[1]} has cuobjdump and nvdisasm.\n"
        "Install the toolkit's binary utilities, or triton: pip install triton"
    )


def _gemm_name(mangled: str) -> str | None:
    """Such as ``gemm_sm90a<half_t, gelu, 128, 192>``; None for kernels that are not CUTLASS's."""
    if not mangled.startswith("_ZN7cutlass"):
        return None
    # every name contains half_t, the type of a copy of 16 bits
    element = "bfloat16_t" if "10bfloat16_t" in mangled else "half_t"
    tiles = [(gemm, tile.search(mangled)) for gemm, tile in _GEMM_TILES.items()]
    found = _GEMM_EPILOGUE.search(mangled)
    epilogue = _GEMM_EPILOGUES[int(found[1])] if found else "unknown"
    return next(
        (f"{gemm}<{element}, {epilogue}, {tile[1]}, {tile[2] or tile[1]}>" for gemm, tile in tiles if tile), None
    )


def _as_json(table: object) -> str:
    """A line for each loop, so that a difference shows it whole."""
    text = json.dumps(table, indent=1, sort_keys=True)
    return re.sub(r"\{[^{}]*\}", lambda match: re.sub(r"\s*\n\s*", " ", match[0]), text) + "\n"


def _disassemble(cuobjdump: Path, path: Path, architecture: str, names: list[str]) -> str:
    command = [str(cuobjdump), "-sass", "-arch", architecture, "-fun", ",".join(names), str(path)]
    # cuobjdump calls the nvdisasm on the PATH
    environment = {**os.environ, "PATH": f"{cuobjdump.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    answer = subprocess.run(command, capture_output=True, text=True, env=environment)
    if answer.returncode:
        raise BuildError(f"{' '.join(command)} failed:\n{answer.stderr.strip()}")
    return answer.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
