"""``import vitfast`` imports torch and no other large package, and needs no compiler."""

from __future__ import annotations

import statistics

from support.subprocesses import run_python

FORBIDDEN = {
    "torchvision",
    "matplotlib",
    "omegaconf",
    "torchmetrics",
    "qtorch",
    "timm",
    "sklearn",
    "transformers",
    "cv2",
}
RUNS = 3
PROGRAM = """
import sys, time
import torch
before, start = set(sys.modules), time.perf_counter()
import vitfast, vitfast.ops
seconds = time.perf_counter() - start
vitfast.build_info(), vitfast.FloatFormat
print(seconds, *(set(sys.modules) - before))
"""


def test_import_brings_neither_torchvision_nor_qtorch() -> None:
    times = []
    for _ in range(RUNS):
        finished = run_python("-c", PROGRAM)
        assert finished.returncode == 0, finished.stderr
        seconds, *modules = finished.stdout.split()
        brought = {module.split(".")[0] for module in modules}
        assert "vitfast" in brought
        assert not brought & FORBIDDEN, f"import vitfast imports {brought & FORBIDDEN}"
        times.append(float(seconds))
    # a goal of one second, and no test asserts a time
    print(f"import vitfast, vitfast.ops: {statistics.median(times):.3f} s beyond import torch (median of {RUNS})")


def test_import_works_without_a_compiler_and_says_nothing() -> None:
    finished = run_python("-c", "import vitfast.ops", PATH="/nonexistent", CXX="/nonexistent", CC="/nonexistent")
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")
