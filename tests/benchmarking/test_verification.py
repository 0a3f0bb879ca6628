"""``vitfast.verify`` on a fake GPU, in every outcome, and its checks with the CPU kernels.

The fake is a program that prints what the process with the kernels would, or ends as it would.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vitfast
from vitfast.benchmarking import verification
from vitfast.benchmarking.harness import Timing
from vitfast.benchmarking.operator_cases import OPERATORS
from vitfast.benchmarking.verification import Target, verify_kernel, verify_target, without_paths
from vitfast.commands.command_options import VerifyOptions
from vitfast.ops.gpu import Gpu, read_record, record_identity, record_path
from vitfast.ops.library import VERIFIABLE_KERNELS, has_kernel

CPU = torch.device("cpu")
KERNELS = ("attention", "layer_norm", "linear")
FAKE = """
import json, os, sys, time
behaviour, extent, kernels = json.loads(sys.argv[1]), *sys.argv[2:]
with open(behaviour["log"], "a") as log:
    log.write(f"{extent} {kernels}\\n")
print("a library's message")
for kernel in kernels.split(","):
    what = behaviour.get(kernel, "proven")
    if what == "crash":
        os.abort()
    if what == "hang":
        time.sleep(60)
    if what == "fail":
        sys.exit("ImportError: /home/someone/lib.so does not load")
    detail = "an error" if what in ("wrong", "crashed") else "1.25x"
    print(json.dumps({"kernel": kernel, "outcome": {"verdict": what, "detail": detail, "checks": []}}), flush=True)
    if what == "crashed":
        time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class FakeGpu:
    """A GPU on which kernels behave as told: "proven", "slower", "wrong", "crashed", "crash", "fail" or "hang"."""

    def __init__(self, folder: Path, **behaviour: str) -> None:
        self.log = folder / "log.txt"
        library = folder / "libvitfast_cuda.so"
        library.write_bytes(b"compiled")
        program = [sys.executable, "-S", "-c", FAKE, json.dumps({"log": str(self.log), **behaviour})]
        self.target = Target(record_identity(Gpu("NVIDIA Fake 9000", (9, 0)), library), program, KERNELS)
        self.seen: list[str] = []

    def verify(self, *, quick: bool = False, repeat: bool = False, progress: Any = None) -> dict[str, str]:
        """Verdicts by kernel."""
        report = progress or (lambda kernel, outcome: self.seen.append(kernel))
        record = verify_target(self.target, quick=quick, repeat=repeat, progress=report)
        assert record == read_record(self.target.identity)
        return {kernel: outcome["verdict"] for kernel, outcome in record["kernels"].items()}

    def runs(self) -> list[str]:
        """The processes since the last call: "extent kernels"."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines


def test_each_kernel_has_an_outcome(tmp_path: Path) -> None:
    gpu = FakeGpu(tmp_path, layer_norm="slower")
    assert gpu.verify() == {"attention": "proven", "layer_norm": "slower", "linear": "proven"}
    assert gpu.runs() == ["full attention,layer_norm,linear"]
    assert gpu.seen == list(KERNELS)


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize(
    ("behaviour", "verdict", "detail"),
    [
        ("wrong", "wrong", "an error"),
        ("crashed", "crashed", "an error"),
        ("crash", "crashed", "the process ended with SIGABRT"),
        ("fail", "crashed", "the process ended with exit code 1. ImportError: lib.so does not load"),
        ("hang", "timed out", "no result after 1 s"),
    ],
)
def test_a_kernel_that_fails_is_named_and_the_rest_goes_on(
    tmp_path: Path, behaviour: str, verdict: str, detail: str, quick: bool
) -> None:
    gpu = FakeGpu(tmp_path, attention=behaviour)
    gpu.target = dataclasses.replace(gpu.target, limit_s=1.0 if behaviour == "hang" else 30.0)
    assert gpu.verify(quick=quick) == {"attention": verdict, "layer_norm": "proven", "linear": "proven"}
    assert read_record(gpu.target.identity)["kernels"]["attention"]["detail"].startswith(detail)


def test_kernels_share_a_process_until_one_crashes(tmp_path: Path) -> None:
    gpu = FakeGpu(tmp_path, layer_norm="crash")
    gpu.verify()
    assert gpu.runs() == ["full attention,layer_norm,linear", "full linear"]


def test_an_interrupted_run_continues(tmp_path: Path) -> None:
    gpu = FakeGpu(tmp_path)

    def interrupt(kernel: str, outcome: dict[str, Any]) -> None:
        if kernel == "layer_norm":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gpu.verify(quick=True, progress=interrupt)
    assert set(read_record(gpu.target.identity)["kernels"]) == {"attention", "layer_norm"}
    gpu.runs()
    assert set(gpu.verify(quick=True)) == set(KERNELS)
    assert gpu.runs() == ["quick linear"]


def test_a_kernel_is_verified_once_and_a_full_run_replaces_a_quick_one(tmp_path: Path) -> None:
    gpu = FakeGpu(tmp_path)
    gpu.verify(quick=True)
    gpu.runs()
    gpu.verify(quick=True)
    assert gpu.runs() == []
    gpu.verify()
    assert gpu.runs() == ["full attention,layer_norm,linear"]
    gpu.verify(quick=True)
    assert gpu.runs() == []
    gpu.verify(repeat=True)
    assert gpu.runs() == ["full attention,layer_norm,linear"]


def test_the_record_can_be_sent_to_others(tmp_path: Path) -> None:
    gpu = FakeGpu(tmp_path, linear="fail")
    gpu.verify()
    path = record_path(gpu.target.identity)
    text = path.read_text() + path.name
    assert "nvidia-fake-9000" in path.name
    for private in (str(tmp_path), str(Path.home()), "someone", os.environ.get("USER") or "someone"):
        assert private not in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/a/b.py:3 fails", "b.py:3 fails"),
        ("in C:\\Users\\someone\\x.py\nat", "in x.py at"),
        ("1.5 GB/s, no path", "1.5 GB/s, no path"),
    ],
)
def test_messages_lose_their_folders(text: str, expected: str) -> None:
    assert without_paths(text) == expected


# --- the checks, with the CPU kernels in small shapes ---


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "_SHAPES", (("vit_nano_patch2_8", 4),))
    monkeypatch.setattr(verification, "_TIMING_S", 0.001)
    monkeypatch.setattr(verification, "CALLS", 1)


needs_kernels = pytest.mark.skipif(not has_kernel("attention", "cpu"), reason="pure PyTorch: no kernels")


@needs_kernels
@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("kernel", VERIFIABLE_KERNELS)
def test_the_cpu_kernels_are_correct(kernel: str) -> None:
    outcome = verify_kernel(kernel, CPU, False)
    assert outcome["verdict"] in ("proven", "proven for inference", "slower"), outcome["detail"]
    assert all(check["speedup"] > 0 for check in outcome["checks"])
    directions = {check["shape"].split(",")[0].partition(" forward")[2] for check in outcome["checks"]}
    assert directions == ({"", " and backward"} if OPERATORS[outcome["checks"][0]["operator"]].has_backward else {""})
    json.dumps(outcome)


@needs_kernels
@pytest.mark.usefixtures("_small")
def test_what_torchs_operators_compute_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = dataclasses.replace(OPERATORS["layer_norm"], vitfast=OPERATORS["layer_norm"].by_torch)
    monkeypatch.setitem(OPERATORS, "layer_norm", operator)
    checks = verify_kernel("layer_norm", CPU, False)["checks"]
    timed = {check["operator"]: check["speedup"] is not None for check in checks}
    assert timed == {"layer_norm": False, "add_layer_norm": True, "add_layer_norm of autocast": True}


@needs_kernels
@pytest.mark.usefixtures("_small")
def test_quick_times_one_precision_and_checks_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "_QUICK_SHAPES", verification._SHAPES)
    checks = verify_kernel("layer_norm", CPU, True)["checks"]
    timed = {check["shape"].split(", ")[-1]: check["speedup"] is not None for check in checks}
    assert timed == {"bf16": True, "fp16": False, "fp32": False}


@needs_kernels
@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize(
    ("kernel", "backward"), [("layer_norm", False), ("layer_norm", True), ("quantize_fixed", False)]
)
def test_a_wrong_result_is_found(kernel: str, backward: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    name = kernel
    correct = OPERATORS[name].vitfast

    def wrong(*inputs: Tensor) -> Tensor:
        result: Tensor = correct(*inputs)
        if not has_kernel(kernel, "cpu"):
            return result
        if backward and result.requires_grad:
            result.register_hook(lambda grad: grad * 1.05)
        elif not backward:
            result = result.clone()
            result[1, 2, 3] += 0.25
        return result

    monkeypatch.setitem(OPERATORS, name, dataclasses.replace(OPERATORS[name], vitfast=wrong))
    outcome = verify_kernel(kernel, CPU, False)
    assert outcome["verdict"] == "wrong"
    assert outcome["detail"].startswith(f"{name} forward{' and backward' if backward else ''}, B=4 N=17")
    assert outcome["checks"][-1]["wrong"] in outcome["detail"]


@needs_kernels
@pytest.mark.usefixtures("_small")
def test_a_slower_kernel_is_correct_and_not_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    for forward, with_gradients, verdict in (
        ([1.3, 0.95], [], "proven"),
        ([0.99, 0.99], [1.1], "proven"),
        ([0.95], [1.1], "slower"),
        ([2, 0.8], [], "slower"),
        ([1.3], [1.3, 0.8], "proven for inference"),
    ):
        assert verification._verdict(forward, with_gradients)["verdict"] == verdict
    calls: list[float] = []

    def fake_measure(cases: Any, timer: Any, budget_s: float) -> Any:
        calls.append(budget_s)
        return [Timing(cases[0], [2.0], 1), Timing(cases[1], [1.0], 1)]

    monkeypatch.setattr(verification, "measure", fake_measure)
    outcome = verify_kernel("upsample_relations", CPU, False)
    assert (outcome["verdict"], calls) == ("slower", [0.001] * len(outcome["checks"]))
    half = "0.50x (0.50 to 0.50)"
    assert outcome["detail"] == f"correct, {half} the speed of torch's operators, with gradients {half}"


@needs_kernels
@pytest.mark.usefixtures("_small")
def test_a_device_without_memory_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(verification, "_check", full)
    assert verify_kernel("linear", CPU, False)["verdict"] == "crashed"


def test_the_process_reports_an_exception_and_ends(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nException raised from /a/b.cu")

    monkeypatch.setattr(verification, "verify_kernel", fail)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    assert verification.main(["0", "full", "attention,linear"]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    outcome = json.loads(line)["outcome"]
    assert line.startswith('{"kernel": "attention"')
    assert outcome["detail"] == "RuntimeError: CUDA error: an illegal memory access was encountered"


# --- the command ---


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    from vitfast.verify import main

    assert main(["quick=true"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(vitfast.UserError, match="needs a GPU"):
        vitfast.verify()  # the module that was imported above


def test_the_command_prints_the_outcomes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vitfast.commands import verify as command

    for behaviour, code in ({"linear": "slower"}, 0), ({"linear": "crash"}, 1):
        gpu = FakeGpu(tmp_path, **behaviour)
        monkeypatch.setattr(
            command, "verify", lambda gpu=gpu, **given: verify_target(gpu.target, **{**given, "repeat": True})
        )
        assert command.run(VerifyOptions()) == code
        out = capsys.readouterr().out
        assert "  attention: proven" in out
        assert f"written: {record_path(gpu.target.identity)}" in out
