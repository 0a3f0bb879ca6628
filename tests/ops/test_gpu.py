"""Which CUDA kernels run on which GPUs: compute capability, records of ``vitfast.verify``, and the reasons given."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

import vitfast
from support.subprocesses import run_python
from vitfast.ops import gpu, library
from vitfast.ops.gpu import Gpu, read_record, record_identity, record_path, unsupported_gpu, write_record
from vitfast.ops.library import CUDA_KERNELS, VERIFIABLE_KERNELS, build_info, forget_cuda_states, has_kernel

H100, A100, L40S = Gpu("NVIDIA H100", (9, 0)), Gpu("NVIDIA A100", (8, 0)), Gpu("NVIDIA L40S", (8, 9))
T4, B200, RTX5090 = Gpu("Tesla T4", (7, 5)), Gpu("NVIDIA B200", (10, 0)), Gpu("GeForce RTX 5090", (12, 0))


@pytest.mark.parametrize(
    ("architectures", "supported", "unsupported"),
    [
        (["9.0a"], [H100], [T4, A100, L40S, B200, RTX5090]),
        (["8.0"], [A100, L40S], [T4, H100, B200]),
        (["8.0+PTX", "9.0a"], [A100, L40S, H100, B200, RTX5090], [T4]),
        (["8.9"], [L40S], [A100, H100]),
        (["10.0f"], [B200], [RTX5090, H100]),
        ([], [], [H100]),
    ],
)
def test_capabilities(architectures: list[str], supported: list[Gpu], unsupported: list[Gpu]) -> None:
    for one in supported:
        assert unsupported_gpu([one], architectures) is None
    for one in unsupported:
        reason = unsupported_gpu([*supported, one], architectures)
        assert reason is not None
        assert one.name in reason
        assert str(one.capability[0]) in reason
    assert unsupported_gpu([], architectures) == "torch sees no GPU"


# --- records ---


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CUDA library, and an empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "libvitfast_cuda.so"
    path.write_bytes(b"compiled")
    return path


def record(path: Path, one: Gpu = H100, **verdicts: str) -> None:
    """Writes a record with these verdicts."""
    kernels = {kernel: {"verdict": verdict, "detail": "1.25x"} for kernel, verdict in verdicts.items()}
    write_record({**record_identity(one, path), "kernels": kernels})


def test_a_record_is_valid_for_its_gpu_and_library(built: Path) -> None:
    record(built, attention="proven")
    assert set(read_record(record_identity(H100, built))["kernels"]) == {"attention"}
    assert read_record(record_identity(A100, built))["kernels"] == {}
    built.write_bytes(b"compiled again")
    assert read_record(record_identity(H100, built))["kernels"] == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"kernels": {}}',
        '{"kernels": 3}',
        '{"kernels": {"attention": 3}}',
        '{"kernels": {"attention": {"verdict": 1, "detail": "x"}}}',
        "\udcff",
    ],
)
def test_a_damaged_record_counts_as_none(built: Path, text: str) -> None:
    record(built, attention="proven")
    identity = record_identity(H100, built)
    record_path(identity).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert read_record(identity) == {**identity, "kernels": {}}


def test_a_renamed_record_of_another_gpu_counts_as_none(built: Path) -> None:
    record(built, A100, attention="proven")
    content = record_path(record_identity(A100, built)).read_text()
    record_path(record_identity(H100, built)).write_text(content)
    assert json.loads(content)["gpu"] == "NVIDIA A100"
    assert read_record(record_identity(H100, built))["kernels"] == {}


def test_the_driver_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: Path) -> None:
    version = tmp_path / "version"
    version.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build (buildd@a)\n")
    monkeypatch.setattr(gpu, "_DRIVER", version)
    assert record_identity(H100, built)["driver"] == "580.65.06"
    monkeypatch.setattr(gpu, "_DRIVER", tmp_path / "none")
    assert record_identity(H100, built)["driver"] == "unknown"


# --- the kernels that run ---


@pytest.fixture
def machine(built: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes torch see GPUs, and a library built for 8.0+PTX and 9.0a, of which no committed result covers a kernel."""
    monkeypatch.setattr(library, "PROVEN_CUDA_KERNELS", frozenset())

    def see(*gpus: Gpu, kernels: str = "proven") -> None:
        monkeypatch.setattr(library, "visible_gpus", lambda: list(gpus))
        monkeypatch.setattr(library, "_cuda_kernels", kernels)
        monkeypatch.setattr(library, "_cuda_missing", None)
        monkeypatch.setattr(library, "_build", lambda: {"cuda_architectures": ["8.0+PTX", "9.0a"]})
        monkeypatch.setattr(library, "library_path", lambda name: built)
        forget_cuda_states()

    yield see
    monkeypatch.undo()
    forget_cuda_states()


def states() -> dict[str, str]:
    return {kernel: state["cuda"] for kernel, state in build_info()["kernels"].items() if kernel in CUDA_KERNELS}


def test_proven_kernels_run_and_the_others_say_why_not(machine, built: Path) -> None:
    record(
        built,
        attention="proven",
        linear="slower",
        mlp="wrong",
        layer_norm="crashed",
        upsample_relations="proven for inference",
    )
    machine(H100)
    found = states()
    assert found["upsample_relations"].startswith("vitfast for inference: verified on the NVIDIA H100")
    assert found["attention"] == "vitfast: verified on the NVIDIA H100 (compute capability 9.0): 1.25x"
    assert found["linear"].startswith("torch: slower on the NVIDIA H100")
    assert found["mlp"].startswith("torch: wrong on the")
    assert found["layer_norm"].startswith("torch: crashed on the")
    assert found["quantize_float"].startswith("torch: not verified on the NVIDIA H100")
    assert "python -m vitfast.verify" in found["quantize_float"]
    assert found["matmul_fp16_accumulation"].startswith("torch: a research kernel")
    assert {kernel for kernel in CUDA_KERNELS if has_kernel(kernel, "cuda")} == {"attention", "upsample_relations"}
    assert [kernel for kernel in CUDA_KERNELS if has_kernel(kernel, "cuda", with_gradients=True)] == ["attention"]


def test_two_kinds_of_gpus_need_two_records(machine, built: Path) -> None:
    record(built, H100, attention="proven", linear="proven")
    machine(H100, A100)
    assert not has_kernel("attention", "cuda")
    assert "NVIDIA A100" in states()["attention"]
    record(built, A100, attention="proven", linear="slower")
    forget_cuda_states()
    assert has_kernel("attention", "cuda")
    assert not has_kernel("linear", "cuda")


@pytest.mark.parametrize(("kernels", "runs"), [("all", True), ("none", False)])
def test_the_variable_overrides_records(machine, built: Path, kernels: str, runs: bool) -> None:
    record(built, **dict.fromkeys(VERIFIABLE_KERNELS, "wrong" if runs else "proven"))
    machine(H100, kernels=kernels)
    assert {has_kernel(kernel, "cuda") for kernel in CUDA_KERNELS} == {runs}
    assert states()["attention"].endswith(f": VITFAST_CUDA_KERNELS={kernels}")


def test_a_gpu_without_code_runs_torchs_operators(machine) -> None:
    machine(H100, T4, kernels="all")
    assert not has_kernel("attention", "cuda")
    assert states()["attention"] == (
        "torch: libvitfast_cuda.so: built for 8.0+PTX, 9.0a, not for the Tesla T4 (compute capability 7.5)"
    )
    with pytest.raises(vitfast.UserError, match="Tesla T4"):
        library.chosen_kernels("attention", "cuda").__enter__()
    with library.chosen_kernels("all", "cuda"):
        assert not has_kernel("attention", "cuda")


def test_a_committed_result_proves_a_kernel_unless_it_failed_here(machine, built: Path, monkeypatch) -> None:
    monkeypatch.setattr(library, "PROVEN_CUDA_KERNELS", frozenset({"attention", "linear"}))
    record(built, linear="wrong")
    machine(H100)
    assert states()["attention"] == "vitfast: covered by a committed result"
    assert states()["linear"].startswith("torch: wrong")
    # the result holds for one compute capability, and for what was compiled for it
    machine(A100)
    assert states()["attention"].startswith("torch: not verified on the NVIDIA A100")
    machine(H100)
    monkeypatch.setattr(library, "_build", lambda: {"cuda_architectures": ["8.0+PTX", "9.0"]})
    forget_cuda_states()
    assert states()["attention"].startswith("torch: not verified on the NVIDIA H100")


def test_a_covered_kernel_is_in_the_committed_result() -> None:
    result = Path(__file__).resolve().parents[2] / "benchmarks/results/verify-h100.json"
    assert set(json.loads(result.read_text())["kernels"]) >= library.PROVEN_CUDA_KERNELS


def test_every_kernel_is_covered_on_an_h100(machine, monkeypatch) -> None:
    monkeypatch.setattr(library, "PROVEN_CUDA_KERNELS", frozenset(VERIFIABLE_KERNELS))
    machine(H100)
    assert {kernel for kernel in CUDA_KERNELS if has_kernel(kernel, "cuda", with_gradients=True)} == {
        *VERIFIABLE_KERNELS
    }


def test_the_first_operator_says_that_kernels_are_not_verified(machine, built: Path, caplog) -> None:
    machine(H100)
    with caplog.at_level(logging.WARNING, "vitfast"):
        build_info()
        assert not caplog.records
        has_kernel("attention", "cuda")
        has_kernel("linear", "cuda")
    (message,) = caplog.messages
    assert "NVIDIA H100" in message
    assert "python -m vitfast.verify" in message
    assert "\n" not in message
    caplog.clear()
    record(built, **dict.fromkeys(VERIFIABLE_KERNELS, "slower"))
    forget_cuda_states()
    has_kernel("attention", "cuda")
    assert not caplog.records


def test_import_and_cpu_operators_read_no_record_and_ask_for_no_gpu() -> None:
    program = (
        "import torch\n"
        "def fail(*_): raise AssertionError('read')\n"
        "import vitfast.ops.gpu as gpu\n"
        "gpu.read_record = gpu.visible_gpus = torch.cuda.is_available = torch.cuda.device_count = fail\n"
        "import vitfast\n"
        "from vitfast import ops\n"
        "ops.layer_norm(torch.randn(2, 8))\n"
        "try: vitfast.ops.library.visible_gpus()\n"
        "except AssertionError as error: print(error)\n"
    )
    finished = run_python("-c", program)
    assert (finished.returncode, finished.stdout) == (0, "read\n"), finished.stderr
