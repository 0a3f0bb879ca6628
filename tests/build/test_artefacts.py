"""The installed libraries: dependencies, exported symbols, and instructions per instruction set."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import vitfast
from vitfast_build.toolchain import is_x86

PACKAGE = Path(vitfast.__file__).parent
LIBRARIES = ("libvitfast_cpu.so", "libvitfast_cuda.so")

# what a library may ask of others: torch's stable C functions, and the C and C++ run time
ALLOWED_SYMBOL = re.compile(
    r"aoti_torch_\w+|torch_\w+"  # torch/csrc/stable/c/shim.h and what it includes
    r"|\w+@+(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+"
    r"|_ITM_(de)?registerTMCloneTable|__gmon_start__|__cxa_finalize"
)
ALLOWED_LIBRARY = re.compile(
    r"libtorch_(cpu|cuda)\.so|lib(stdc\+\+|m|gcc_s|c|pthread|dl|rt)\.so\.\d+|ld-linux[-\w]*\.so\.\d+"
)
# registers wider than the 128 bits that every x86-64 processor has
WIDE_REGISTER = re.compile(r"%[yz]mm\d")


def _build() -> dict[str, object]:
    try:
        build: dict[str, object] = importlib.import_module("vitfast._build_config").BUILD
    except ModuleNotFoundError:
        pytest.skip("vitfast was not built: pip install .")
    return build


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> Path:
    """Each library that the build says it has made."""
    if not _build()["cpu_library" if request.param == LIBRARIES[0] else "cuda_library"]:
        pytest.skip(f"{request.param} was not built")
    return PACKAGE / request.param


def _tool(*command: str | Path) -> str:
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} is not installed")
    return subprocess.check_output(command, text=True)


def test_libraries_use_only_torchs_stable_abi(library: Path) -> None:
    symbols = [line.split()[-1] for line in _tool("nm", "-D", "--undefined-only", library).splitlines()]
    assert any(symbol.startswith("aoti_torch_") for symbol in symbols)
    assert [symbol for symbol in symbols if not ALLOWED_SYMBOL.fullmatch(symbol)] == []


def test_no_search_path_and_no_unexpected_library(library: Path) -> None:
    dynamic = _tool("readelf", "-d", library)
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    assert "libtorch_cpu.so" in needed
    assert [name for name in needed if not ALLOWED_LIBRARY.fullmatch(name)] == []


def test_nothing_but_cxx_templates_is_exported(library: Path) -> None:
    # cudart is linked statically: its functions must not be taken for those of torch's own cudart
    exported = [line.split(maxsplit=2)[-1] for line in _tool("nm", "-DC", "--defined-only", library).splitlines()]
    assert [name for name in exported if "std::" not in name] == []


def test_no_path_of_the_building_machine(library: Path) -> None:
    found = set(re.findall(rb"(?:[\w+.-]*/)+[\w+.-]+\.(?:cpp|cuh?|h)\b", library.read_bytes()))
    assert found
    assert [name for name in found if not re.match(rb"(csrc|torch)/", name)] == []


def test_the_library_loads_and_registers_its_operators(library: Path) -> None:
    if "cuda" in library.name and torch.version.cuda is None:
        pytest.skip("this torch has no CUDA")
    torch.ops.load_library(library)
    key = "CUDA" if "cuda" in library.name else "CPU"
    assert torch._C._dispatch_has_kernel_for_dispatch_key("vitfast::quantize_float", key)


def _functions() -> Iterator[tuple[str, str]]:
    """Yields the symbol and the instructions of each function of the CPU library."""
    if not _build()["cpu_library"] or not is_x86():
        pytest.skip("no CPU library with instruction sets")
    listing = _tool("objdump", "-d", "--no-show-raw-insn", PACKAGE / LIBRARIES[0])
    for part in re.split(r"\n(?=[0-9a-f]+ <)", listing)[1:]:
        header, _, body = part.partition("\n")
        yield header.split("<", 1)[1].removesuffix(">:"), body


def test_wide_registers_only_in_the_functions_of_their_instruction_set() -> None:
    """A function outside avx2 and avx512 runs everywhere; a template of both would be kept in one of its copies."""
    users: dict[str, set[str]] = {"ymm": set(), "zmm": set()}
    for symbol, body in _functions():
        for register in {match[1:4] for match in WIDE_REGISTER.findall(body)}:
            users[register].add(symbol)
    assert any("avx512" in symbol for symbol in users["zmm"]), "the disassembly shows no AVX-512 code: is it stripped?"
    assert {symbol for symbol in users["zmm"] if "avx512" not in symbol} == set()
    assert {symbol for symbol in users["ymm"] if "avx512" not in symbol and "avx2" not in symbol} == set()


# sums that the compiler could not keep in registers: a vector stored on the stack
SPILL = re.compile(r"v?mov\w+\s+%[xyz]mm\d+,[^,]*\(%r[sb]p\)")
MULTIPLICATION = re.compile(r"(vfmadd|vdpbf16ps|vpdpbusd|vpmaddwd)")
INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\t(\S.*)$", re.MULTILINE)


def _inner_loops(body: str) -> Iterator[list[str]]:
    """Yields the instructions between a jump back and its target, where no other jump is."""
    found = [(match[1], match[2]) for match in INSTRUCTION.finditer(body)]
    places = {address: place for place, (address, _) in enumerate(found)}
    for end, (_, instruction) in enumerate(found):
        jump = re.match(r"j\w+\s+([0-9a-f]+)", instruction)
        begin = places.get(jump[1], end) if jump else end
        loop = [text for _, text in found[begin:end]]
        if loop and not any(text.startswith("j") for text in loop):
            yield loop


def test_microkernels_keep_their_sums_in_registers() -> None:
    """They would give the same results at half of the speed."""
    seen = set()
    for symbol, body in _functions():
        if "avx" not in symbol or "multiply_" not in symbol:
            continue
        for loop in _inner_loops(body):
            if any(MULTIPLICATION.match(instruction) for instruction in loop):
                assert [instruction for instruction in loop if SPILL.match(instruction)] == [], symbol
                seen.add(symbol)
    assert any("multiply_tile" in symbol for symbol in seen), "the disassembly shows no microkernels: is it stripped?"


def test_the_module_tells_the_build_and_the_processor() -> None:
    if not _build()["cpu_library"]:
        pytest.skip("vitfast._C was not built")
    module = importlib.import_module("vitfast._C")
    info = module.build_info()
    assert info["torch_target_version"] == "0x020b000000000000"
    assert set(info) == {"compiler", "cplusplus", "pybind11", "python", "torch_target_version"}
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    kernel_names = {"avx512bf16": "avx512_bf16", "avx512vnni": "avx512_vnni"}  # dashes are underscores there
    for feature, present in module.cpu_features().items():
        assert flags is not None
        assert present == (kernel_names.get(feature, feature.replace("-", "_")) in flags[1].split()), feature
