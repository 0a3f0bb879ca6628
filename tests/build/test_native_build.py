"""Real, small builds: a project with one source and one header, compiled and linked as vitfast is."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vitfast_build.commands import build_summary, describe_build, write_build
from vitfast_build.cuda_toolkit import CudaDecision, CudaToolkit
from vitfast_build.native_build import NativeBuild
from vitfast_build.options import BuildError, BuildOptions
from vitfast_build.toolchain import Compiler, check_sanitizers

# what a program without sanitizers has to load first, to load a library with them
RUN_TIME = ("libasan.so", "libstdc++.so")


def _ask(library: Path, function: str) -> str:
    """Loads the library in a separate process, because a loaded library cannot be replaced."""
    code = (
        "import ctypes, sys; f = getattr(ctypes.CDLL(sys.argv[1]), sys.argv[2]);"
        "f.restype = ctypes.c_char_p if sys.argv[2] == 'get_file' else ctypes.c_int; print(f())"
    )
    return subprocess.check_output([sys.executable, "-c", code, library, function], text=True).strip()


def test_only_what_changed_is_compiled_again(
    project: NativeBuild, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    project.run(folder)
    announced, *steps = capfd.readouterr().out.splitlines()
    assert announced.startswith("vitfast: compiling the CPU library, parallel compilers: ")
    lines = [re.fullmatch(r"\[(\d)/5 at [0-9.]+ s\] (\S+)", step) for step in steps if not step.startswith("ninja: ")]
    assert [line and line[1] for line in lines] == ["1", "2", "3", "4", "5"], steps
    sources = ["csrc/cpu/other.cpp", "csrc/library.cpp", "csrc/module.cpp"]
    assert sorted(line[2] for line in lines if line) == sorted([*sources, *project.artefacts])
    assert {path.name for path in folder.glob("*.so")} == set(project.artefacts)
    assert _ask(folder / "libvitfast_cpu.so", "get_answer") == "41"

    project.run(folder)
    assert "no work to do" in capfd.readouterr().out

    (project.root / "csrc/answer.h").write_text("constexpr int answer = 42;\n")
    project.run(folder)
    again = capfd.readouterr().out
    assert "library.cpp" in again
    assert "other.cpp" not in again
    assert "module.cpp" not in again
    assert _ask(folder / "libvitfast_cpu.so", "get_answer") == "42"


def test_the_libraries_hold_no_path_of_this_machine(project: NativeBuild, tmp_path: Path) -> None:
    project.run(tmp_path / "out")
    assert _ask(tmp_path / "out/libvitfast_cpu.so", "get_file") == "b'csrc/library.cpp'"


def test_compiler_errors_are_reported(project: NativeBuild, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (project.root / "csrc/cpu/other.cpp").write_text("#error broken on purpose\n")
    folder = tmp_path / "an output"
    with pytest.raises(BuildError, match=r"Compilation failed(.|\n)*\n.*MAX_JOBS=1") as error:
        project.run(folder)
    output = capfd.readouterr().out
    assert "error: #error broken on purpose" in output
    assert "FAILED: " in output
    (repeat,) = re.findall(r"^    (ninja .*)$", str(error.value), re.MULTILINE)
    again = subprocess.run(shlex.split(repeat), capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert "error: #error broken on purpose" in again.stdout


def test_an_undefined_symbol_is_an_error_of_the_build(
    project: NativeBuild, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (project.root / "csrc/cpu/other.cpp").write_text("void nowhere(); int hidden() { nowhere(); return 1; }\n")
    with pytest.raises(BuildError):
        project.run(tmp_path / "out")
    assert "undefined reference to `nowhere()'" in capfd.readouterr().out


def test_sanitizers_end_the_program_at_an_error(
    project: NativeBuild, tmp_path: Path, clean_environment: dict[str, str]
) -> None:
    """An element behind the last one, and a signed overflow: without sanitizers both pass unnoticed."""
    (project.root / "csrc/cpu/other.cpp").write_text(
        '#define SHOWN extern "C" __attribute__((visibility("default")))\n'
        "SHOWN int read(int i) { int* volatile a = new int[4]{}; int x = a[i]; delete[] a; return x; }\n"
        "SHOWN int add(int i) { return i + 2147483647; }\n"
    )
    options = BuildOptions.from_environment({"VITFAST_SANITIZE": "1"})
    build = NativeBuild.plan(project.root, options, clean_environment)
    assert build.cuda.toolkit is None
    build.run(tmp_path / "out")
    description = describe_build(options, build)
    assert "AddressSanitizer" in build_summary(description)
    preload = [subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip() for name in RUN_TIME]
    environment = {**clean_environment, "LD_PRELOAD": " ".join(preload), "ASAN_OPTIONS": "detect_leaks=0"}
    calls = (("read", 3, ""), ("read", 4, "heap-buffer-overflow"), ("add", 1, "signed integer overflow"))
    for function, argument, said in calls:
        code = f"import ctypes, sys; ctypes.CDLL(sys.argv[1]).{function}({argument})"
        command = [sys.executable, "-c", code, tmp_path / "out/libvitfast_cpu.so"]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert bool(result.returncode) == bool(said), result.stderr
        assert said in result.stderr


def test_sanitizers_need_their_library(program: Callable[..., Path], clean_environment: dict[str, str]) -> None:
    other = program("clang++", 'echo "${1#-print-file-name=}"')
    message = r"needs g\+\+ with its libasan.so, which .*clang\+\+ has not(.|\n)*unset VITFAST_SANITIZE"
    with pytest.raises(BuildError, match=message):
        check_sanitizers(Compiler((str(other),), "clang 16"), clean_environment)


def test_compiler_flags_follow_the_design(root: Path, clean_environment: dict[str, str]) -> None:
    text = NativeBuild.plan(root, BuildOptions.from_environment({}), clean_environment).ninja_text()
    assert "-march=" not in text
    assert "-ffast-math" not in text
    assert "rpath" not in text
    assert "sanitize" not in text
    for flag in ("-O3", "-fvisibility=hidden", "-fno-math-errno", "-DTORCH_TARGET_VERSION=0x020b000000000000"):
        assert flag in text
    assert re.search(r"avx512\.cpp\n  source = .*\n  flags = -mavx512f .*-mprefer-vector-width=512\n", text)
    assert re.search(r"baseline\.cpp\n  source = .*\n  flags = -O1 -fpeel-loops\n", text)


def test_each_cuda_file_is_compiled_for_its_architectures(root: Path, clean_environment: dict[str, str]) -> None:
    def flags_of(architectures: str) -> dict[str, tuple[str, ...]]:
        options = BuildOptions.from_environment({"TORCH_CUDA_ARCH_LIST": architectures, "VITFAST_CUDA": "0"})
        build = NativeBuild.plan(root, options, clean_environment)
        toolkit = CudaToolkit(Path("/cuda"), (13, 0), frozenset())
        cuda = CudaDecision(toolkit, "nvcc 13.0", Path("/opt/cutlass/include"), options.architectures)
        with_cuda = dataclasses.replace(build, cuda=cuda)
        return {Path(source.path).name: source.flags for source in with_cuda.cuda_sources()}

    sm80, sm90a = "-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90a,code=sm_90a"
    both = flags_of("8.0;9.0a")
    assert both["attention_forward.cu"] == (sm80, sm90a)
    assert both["gemm_sm80.cu"][0] == sm80
    assert sm90a not in both["gemm_sm80.cu"]
    assert both["gemm_half_sm90a.cu"][0] == sm90a
    assert both["gemm_half_sm90a.cu"][1:] == ("-DNDEBUG", "-isystem", "/opt/cutlass/include")
    assert both["linear_cuda.cpp"] == ("-O1", "-DVITFAST_HAS_SM90A=1", "-DVITFAST_HAS_SM80=1")
    one = flags_of("9.0a")
    assert "gemm_sm80.cu" not in one
    assert "-DVITFAST_HAS_SM80=0" in one["linear_cuda.cpp"]


def test_a_build_is_described_without_paths(project: NativeBuild, tmp_path: Path) -> None:
    left_out = BuildOptions.from_environment({"TORCH_CUDA_ARCH_LIST": "7.5;9.0a", "VITFAST_CUDA": "0"})
    build = describe_build(left_out, dataclasses.replace(project, options=left_out))
    assert build["cpu_library"]
    assert not build["cuda_library"]
    assert build["cuda_reason"] == "VITFAST_CUDA=0"
    write_build(build, tmp_path)
    scope: dict[str, object] = {}
    text = (tmp_path / "_build_config.py").read_text()
    exec(text, scope)
    assert scope["BUILD"] == build
    assert str(tmp_path) not in text
    assert os.path.expanduser("~") not in text
    assert "not built: VITFAST_CUDA=0" in build_summary(build)


def test_pure_pytorch_is_described_as_such() -> None:
    build = describe_build(BuildOptions.from_environment({"VITFAST_BUILD": "none"}), None)
    assert not build["cpu_library"]
    assert build["cuda_reason"] == "VITFAST_BUILD=none"
    assert "nothing compiled" in build_summary(build)
