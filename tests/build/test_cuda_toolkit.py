from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from vitfast_build import cuda_toolkit
from vitfast_build.cuda_toolkit import decide_cuda, find_toolkit
from vitfast_build.options import BuildError, BuildOptions
from vitfast_build.toolchain import TorchInstallation

CUDA_TORCH = TorchInstallation(Path("/torch"), "2.15.0+cu132", "13.2")
CPU_TORCH = TorchInstallation(Path("/torch"), "2.15.0+cpu", None)

# imitates nvcc: --dryrun prints the toolkit's folder to standard error and fails without an input
NVCC = """
case "$1" in
--version) echo "Cuda compilation tools, release {version}, V{version}.88" ;;
--list-gpu-arch) printf 'compute_80\\ncompute_86\\ncompute_90\\n' ;;
--dryrun) echo "#\\$ TOP={folder}/bin/.." >&2; exit 1 ;;
esac
"""

Program = Callable[..., Path]


def _toolkit(program: Program, tmp_path: Path, version: str = "13.0") -> Path:
    folder = tmp_path / "cuda"
    program("nvcc", NVCC.format(version=version, folder=folder), folder="cuda/bin")
    return folder


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NVIDIA's headers, as if their package were installed, and no driver."""
    monkeypatch.setattr(cuda_toolkit, "find_cutlass", lambda environment: tmp_path / "cutlass")
    monkeypatch.setattr(cuda_toolkit, "DRIVER", str(tmp_path / "libcuda.so.1"))


def test_a_wrapper_script_on_the_path_leads_to_the_toolkit(program: Program, tmp_path: Path) -> None:
    folder = _toolkit(program, tmp_path)
    wrapper = program("nvcc", f'exec {folder}/bin/nvcc "$@"')
    toolkit = find_toolkit({"PATH": f"{wrapper.parent}:/usr/bin:/bin"})
    assert toolkit is not None
    assert toolkit.folder == folder
    assert toolkit.version == (13, 0)
    assert toolkit.architectures == {"compute_80", "compute_86", "compute_90"}


def test_cuda_home_comes_before_the_path(program: Program, tmp_path: Path) -> None:
    folder = _toolkit(program, tmp_path, "12.8")
    other = program("nvcc", "echo 'release 13.0'")
    toolkit = find_toolkit({"CUDA_HOME": str(folder), "PATH": f"{other.parent}:/usr/bin:/bin"})
    assert toolkit is not None
    assert toolkit.version_text == "12.8"
    assert toolkit.nvcc == folder / "bin/nvcc"


def test_missing_nvcc_is_a_reason_or_an_error_if_cuda_is_required(tmp_path: Path) -> None:
    environment = {"PATH": str(tmp_path)}
    decision = decide_cuda(BuildOptions.from_environment({}), CUDA_TORCH, environment)
    assert decision.toolkit is None
    assert "there is no nvcc" in decision.reason
    with pytest.raises(
        BuildError, match=r"VITFAST_CUDA=1 requires(.|\n)*export CUDA_HOME=(.|\n)*export VITFAST_CUDA=0"
    ):
        decide_cuda(BuildOptions.from_environment({"VITFAST_CUDA": "1"}), CUDA_TORCH, environment)


def test_cuda_home_without_nvcc_is_a_reason_or_an_error_if_cuda_is_required(tmp_path: Path) -> None:
    environment = {"CUDA_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    reason = decide_cuda(BuildOptions.from_environment({}), CUDA_TORCH, environment).reason
    assert reason.startswith(f"CUDA_HOME={tmp_path} has no bin/nvcc")
    with pytest.raises(BuildError, match=r"has no bin/nvcc(.|\n)*unset CUDA_HOME"):
        decide_cuda(BuildOptions.from_environment({"VITFAST_CUDA": "1"}), CUDA_TORCH, environment)


def test_cuda_is_built_if_nvcc_is_found_unless_disabled(program: Program, tmp_path: Path) -> None:
    environment = {"CUDA_HOME": str(_toolkit(program, tmp_path))}
    decision = decide_cuda(BuildOptions.from_environment({}), CUDA_TORCH, environment)
    assert decision.toolkit is not None
    assert decision.reason == "nvcc 13.0"
    assert decision.cutlass == tmp_path / "cutlass"
    assert decide_cuda(BuildOptions.from_environment({"VITFAST_CUDA": "0"}), CUDA_TORCH, environment).toolkit is None


@pytest.mark.parametrize(
    ("version", "torch", "reason"),
    [
        ("11.8", CUDA_TORCH, r"nvcc 11\.8 is older than 12\.0"),
        ("13.0", CPU_TORCH, r"torch 2\.15\.0\+cpu is a CPU-only"),
    ],
)
def test_an_old_toolkit_and_a_cpu_only_torch_are_obstacles(
    program: Program, tmp_path: Path, version: str, torch: TorchInstallation, reason: str
) -> None:
    environment = {"CUDA_HOME": str(_toolkit(program, tmp_path, version))}
    assert decide_cuda(BuildOptions.from_environment({}), torch, environment).toolkit is None
    with pytest.raises(BuildError, match=rf"VITFAST_CUDA=1 requires the CUDA library, but {reason}"):
        decide_cuda(BuildOptions.from_environment({"VITFAST_CUDA": "1"}), torch, environment)


def test_an_architecture_that_nvcc_does_not_know_is_named(program: Program, tmp_path: Path) -> None:
    environment = {"CUDA_HOME": str(_toolkit(program, tmp_path))}
    options = BuildOptions.from_environment({"TORCH_CUDA_ARCH_LIST": "9.0a;10.0"})
    with pytest.raises(BuildError, match=r"does not support 10\.0; it supports compute_80, compute_86"):
        decide_cuda(options, CUDA_TORCH, environment)


def test_missing_cutlass_headers_are_an_obstacle(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_toolkit, "find_cutlass", lambda environment: None)
    environment = {"CUDA_HOME": str(_toolkit(program, tmp_path))}
    decision = decide_cuda(BuildOptions.from_environment({}), CUDA_TORCH, environment)
    assert decision.toolkit is None
    assert decision.reason.startswith("NVIDIA's CUTLASS headers (nvidia-cutlass) are not installed")
    with pytest.raises(BuildError, match=r"pip install --no-deps \"nvidia-cutlass(.|\n)*export VITFAST_CUTLASS="):
        decide_cuda(BuildOptions.from_environment({"VITFAST_CUDA": "1"}), CUDA_TORCH, environment)


# the driver's functions that the build calls, for the GPUs in an array of {major, minor}
FAKE_DRIVER = """
static const int gpus[][2] = {capabilities};
int cuInit(unsigned flags) {{ return {error}; }}
int cuDeviceGetCount(int* count) {{ *count = sizeof(gpus) / sizeof(gpus[0]); return 0; }}
int cuDeviceGetAttribute(int* value, int attribute, int device) {{ *value = gpus[device][attribute - 75]; return 0; }}
"""


@pytest.mark.parametrize(
    ("capabilities", "architectures"),
    [
        ("{{9, 0}, {9, 0}}", ["9.0a"]),
        ("{{8, 6}, {8, 0}}", ["8.0", "8.6"]),
        ("{{7, 5}, {8, 6}}", ["8.6"]),
        ("{{7, 5}}", ["8.0+PTX", "9.0a"]),  # no GPU that the kernels support: as without one
        ("{{12, 0}}", ["8.0+PTX", "9.0a"]),  # newer than nvcc: the PTX of 8.0
    ],
)
def test_the_visible_gpus_choose_the_architectures(
    program: Program, tmp_path: Path, capabilities: str, architectures: list[str]
) -> None:
    _install_driver(tmp_path, capabilities)
    environment = {"CUDA_HOME": str(_toolkit(program, tmp_path))}
    decision = decide_cuda(BuildOptions.from_environment({}), CUDA_TORCH, environment)
    assert [str(item) for item in decision.architectures] == architectures
    assert ("for the visible GPUs" in decision.reason) == ("+PTX" not in architectures[0])
    named = BuildOptions.from_environment({"TORCH_CUDA_ARCH_LIST": "8.0"})
    assert [str(item) for item in decide_cuda(named, CUDA_TORCH, environment).architectures] == ["8.0"]


def test_without_a_driver_that_works_the_defaults_are_built(program: Program, tmp_path: Path) -> None:
    environment = {"CUDA_HOME": str(_toolkit(program, tmp_path))}
    for install in (lambda: None, lambda: _install_driver(tmp_path, "{{9, 0}}", error=100)):  # CUDA_ERROR_NO_DEVICE
        install()
        decision = decide_cuda(BuildOptions.from_environment({}), CUDA_TORCH, environment)
        assert [str(item) for item in decision.architectures] == ["8.0+PTX", "9.0a"]


def _install_driver(folder: Path, capabilities: str, error: int = 0) -> None:
    source = folder / "driver.c"
    source.write_text(FAKE_DRIVER.format(capabilities=capabilities, error=error))
    subprocess.run(["cc", "-shared", "-fPIC", source, "-o", folder / "libcuda.so.1"], check=True)
