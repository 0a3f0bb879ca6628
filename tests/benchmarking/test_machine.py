from __future__ import annotations

import json
import os

import pytest
import torch

from vitfast.benchmarking.machine import (
    MIN_RUN_S,
    arithmetic_peak,
    busy_warning,
    describe_machine,
    device_limits,
    instruction_sets,
    iterations_of_a_run,
    with_limits,
)
from vitfast.benchmarking.table import Table
from vitfast.ops.library import has_kernel

CPU = torch.device("cpu")


def test_description_is_json_with_all_fields():
    machine = json.loads(json.dumps(describe_machine(torch.device("cpu"))))
    assert machine["cpu"]["model"]
    assert machine["cpu"]["cores"] == len(os.sched_getaffinity(0))
    assert machine["cpu"]["threads"] == torch.get_num_threads()
    assert machine["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert {"vitfast", "torchvision", "timm"} <= set(machine["packages"])
    assert machine["build_info"]["kernels"]["attention"]["cpu"]
    assert machine["gpu"] is None
    assert machine["date"][:2] == "20"
    assert machine["memory_bytes"] > 2**28


@pytest.mark.parametrize(
    ("load", "cores", "is_busy"),
    [(0.1, 2, False), (0.5, 2, False), (0.6, 2, True), (3.0, 128, False), (7.0, 128, True), (None, 2, False)],
)
def test_a_busy_machine_is_reported(load, cores, is_busy):
    warning = busy_warning(load, cores)
    assert (warning is not None) == is_busy
    if warning:
        assert f"a load of {load}" in warning


def test_instruction_sets_are_read_on_x86_and_arm(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        "processor\t: 0\nflags\t\t: fpu avx2 avx512f fma avx512_bf16\n\nprocessor\t: 1\nflags\t\t: amx_tile\n"
    )
    assert instruction_sets(cpuinfo) == ["avx2", "fma", "avx512f", "avx512_bf16"]
    cpuinfo.write_text("processor\t: 0\nFeatures\t: fp asimd sve i8mm\n")
    assert instruction_sets(cpuinfo) == ["asimd", "i8mm", "sve"]
    assert instruction_sets(tmp_path / "missing") == []


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_limits_count_their_own_work(precision):
    copy, product = device_limits(CPU, precision)
    assert copy.run().nbytes * 2e-9 == copy.gigabyte
    result = product.run()
    rows, columns = result.shape
    assert product.gflop == pytest.approx(2e-9 * rows * rows * columns)
    assert result.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    assert result.abs().sum() > 0


def test_they_join_any_table(clock):
    table = with_limits(Table("inference", "a title", {}, "fp32", lambda table: [clock.case("vitfast", 1.0)]), CPU)
    assert [(one.name, one.is_limit) for one in table.cases()] == [
        ("vitfast", False),
        ("device copy", True),
        ("device matrix product", True),
    ]


RATE = 2e6  # iterations a second, undisturbed


class DisturbedLoop:
    """A loop on a machine that others use: every run takes longer than it should, by another factor."""

    def __init__(self, delays: list[float], factors: list[float]) -> None:
        self.delays, self.factors = delays, factors
        self.seconds, self.calls = 0.0, 0

    def __call__(self, iterations: int) -> None:
        delay = self.delays[min(self.calls, len(self.delays) - 1)]
        self.seconds += delay + self.factors[self.calls % len(self.factors)] * iterations / RATE
        self.calls += 1

    def clock(self) -> float:
        return self.seconds


@pytest.mark.parametrize(
    ("delays", "factors"),
    [
        ([0.0], [1.0]),
        ([0.5, 0.5, 0.0], [1.0]),  # the threads start in the first call, and the second is interrupted
        ([0.2, 0.0], [1.0, 1.0, 30.0]),
        ([0.0], [8.0, 1.0]),
    ],
)
def test_a_run_is_long_enough_without_disturbances(delays, factors):
    loop = DisturbedLoop(delays, factors)
    seconds = iterations_of_a_run(loop, loop.clock) / RATE
    assert seconds >= MIN_RUN_S
    assert seconds < 2 * MIN_RUN_S, "the benchmark's time is not for the limit alone"


def test_peak_counts_its_own_operations():
    peak = arithmetic_peak("fp16_32")
    if not has_kernel("packed", "cpu"):
        assert peak is None
        return
    assert peak.is_limit
    assert peak.gflop * 1e9 == pytest.approx(peak.run())
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2 * before)
        assert peak.run() == pytest.approx(2e9 * peak.gflop)
    finally:
        torch.set_num_threads(before)


def test_other_precisions_have_peaks_of_their_own():
    if not has_kernel("packed", "cpu"):
        pytest.skip("pure PyTorch: there is no peak")
    with pytest.raises(RuntimeError, match="precision must be fp32"):
        arithmetic_peak("fp8")
