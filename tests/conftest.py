"""Shared by all tests: the support package on the path, seeded random numbers, what was tested and what was skipped."""

from __future__ import annotations

import gc
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

# a thread that waits for others sleeps instead of spinning: other processes need the cores
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

_tests = Path(__file__).parent
# the support kit; and the build's own code, which is no part of the package
sys.path[:0] = [str(_tests), str(_tests.parent / "build_backend")]

# `pytest -n auto` runs one process for each core: more threads than that would only wait for each other
_processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
torch.set_num_threads(max(1, (os.cpu_count() or 1) // _processes))


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """With ``-n``, gives each process neighbouring tests, which share fixtures, until one has none left."""
    if getattr(config.option, "numprocesses", None) and config.option.dist == "no":
        config.option.dist = "worksteal"


def pytest_configure(config: pytest.Config) -> None:
    """Silences the note on head dimensions that the kernels leave to torch: tests use them on purpose."""
    config.addinivalue_line("filterwarnings", "ignore:attention. the kernel supports head dimensions:UserWarning")


def pytest_report_header() -> list[str]:
    """Says which kernels the operators will use, so that a log tells what it has tested."""
    import vitfast
    from support.sample import fuzz_seed

    info = vitfast.build_info()
    kernels = ", ".join(f"{name}: {devices['cpu']}" for name, devices in info["kernels"].items())
    return [
        f"vitfast {info['vitfast']} from {Path(vitfast.__file__).parent}, torch {info['torch']}",
        f"CPU kernels ({info['cpu']['instruction_set']}): {kernels}",
        f"fuzz seed {fuzz_seed()} (VITFAST_FUZZ_SEED), {os.cpu_count()} cores, {torch.get_num_threads()} torch threads",
    ]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """A test that draws random numbers draws the same ones alone and in any order."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def dvt_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a small DVT with two exits; tests that write into it use a copy."""
    from vitfast.train import main

    path = tmp_path_factory.mktemp("runs") / "dvt"
    options = ["model.name=dvt_nano_16", "model.fields.embed_dim=16", "model.fields.num_heads=2"]
    options += ["model.fields.depth=1", "data.batch_size=64", "data.augment.affine_translate=0", "optim.lr=0.01"]
    assert main([*options, "schedule.epochs=3", "schedule.warmup_epochs=1", f"run_dir={path}"]) == 0
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="no GPU"))


def pytest_collection_finish() -> None:
    """Makes garbage collection cheap: modules and tests, millions of objects, are excluded, and it is rarer."""
    gc.freeze()
    gc.set_threshold(20_000)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Counts the skipped tests by reason, which ends at a colon; rare reasons share a line."""
    counts: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        _, _, reason = report.longrepr
        counts[reason.removeprefix("Skipped: ").partition(":")[0]] += 1
    if counts:
        terminalreporter.section("skipped")
        common = counts.most_common()
        for reason, count in common[:3]:
            terminalreporter.line(f"{count:7,} {reason}")
        if rare := common[3:]:
            listed = "; ".join(f"{count} {reason}" for reason, count in rare)
            terminalreporter.line(f"{sum(count for _, count in rare):7,} other: {listed}")
