from __future__ import annotations

import json

import pytest
import torch

from vitfast.benchmarking.machine import busy_warning, describe_machine, instruction_sets, usable_cores


def test_the_description_is_json_and_says_what_a_reader_needs():
    machine = json.loads(json.dumps(describe_machine(torch.device("cpu"))))
    assert machine["cpu"]["model"]
    assert 1 <= machine["cpu"]["cores"] == usable_cores()
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
def test_a_busy_machine_is_told(load, cores, is_busy):
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
