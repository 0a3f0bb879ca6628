from __future__ import annotations

import itertools
import json
import os
import runpy
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from support.subprocesses import run_python
from vitfast import benchmark
from vitfast.benchmarking import benchmark_run
from vitfast.benchmarking.options import BenchmarkOptions
from vitfast.config import load_options

SCRIPTS = Path(__file__).parent.parent / "benchmarks"
TINY = ["model=vit_nano_patch2_8", "batch=1,2", "seconds=0.01", "device=cpu"]


def test_it_measures_models_and_operators_and_writes_the_results(tmp_path, capsys):
    path = tmp_path / "results.json"
    threads = torch.get_num_threads()
    assert benchmark.main([*TINY, "threads=1", f"json={path}"]) == 0
    assert torch.get_num_threads() == threads
    printed = capsys.readouterr()
    assert str(path) in printed.err
    content = json.loads(path.read_text())
    assert content["machine"]["cpu"]["threads"] == 1
    assert content["options"]["batch"] == "1,2"
    outcomes = content["outcomes"]
    modes = [outcome["mode"] for outcome in outcomes]
    assert modes == ["inference"] * 2 + ["training"] * 2 + ["operators"] * (len(modes) - 4)
    assert {outcome["labels"]["batch"] for outcome in outcomes} == {1, 2}
    for outcome in outcomes:
        assert outcome["title"] in printed.out
        own, rival = outcome["standings"][:2]
        assert own["subject"] == "vitfast"
        assert own["against"] is not None
        assert own["time_ms"]["lower"] <= own["time_ms"]["median"] <= own["time_ms"]["upper"]
        assert max(own["error"], rival["error"]) < 1e-3
    assert outcomes[1]["standings"][0]["images_per_s"] > 0
    assert "## vit_nano_patch2_8, batch 2, fp32" in path.with_suffix(".md").read_text()


def test_a_wrong_result_is_told_and_ends_with_1(monkeypatch, capsys):
    operators = "vitfast.benchmarking.operator_cases.ops.layer_norm"
    monkeypatch.setattr(operators, lambda x, weight, bias: x * weight + bias)
    assert benchmark.main([*TINY, "mode=operators"]) == 1
    assert "layer_norm forward" in (message := capsys.readouterr().err)
    assert "vitfast differs from torch in fp64" in message
    assert "add_layer_norm forward" not in message


def test_what_does_not_fit_into_memory_is_told_and_the_others_go_on(monkeypatch, capsys, tmp_path):
    measured = benchmark_run.run_comparison

    def run(comparison, timer, budget_s):
        if comparison.labels["batch"] == 1:
            raise torch.OutOfMemoryError("too much")
        return measured(comparison, timer, budget_s)

    monkeypatch.setattr(benchmark_run, "run_comparison", run)
    path = tmp_path / "results.json"
    assert benchmark.main([*TINY, "mode=inference", "libraries=timm", f"json={path}"]) == 0
    assert "vit_nano_patch2_8, batch 1, fp32: the device has not enough memory" in capsys.readouterr().err
    content = json.loads(path.read_text())
    assert [outcome["labels"]["batch"] for outcome in content["outcomes"]] == [2]
    assert any("not enough memory" in warning for warning in content["warnings"])


def test_a_busy_machine_is_told_and_stays_with_the_results(monkeypatch, capsys, tmp_path):
    described = benchmark_run.describe_machine(torch.device("cpu")) | {"load_average": 100.0}
    monkeypatch.setattr(benchmark_run, "describe_machine", lambda device: described)
    path = tmp_path / "busy.json"
    assert benchmark.main([*TINY, "mode=inference", f"json={path}"]) == 0
    assert "warning: the machine is busy: a load of 100.0" in capsys.readouterr().err
    assert "the machine is busy" in json.loads(path.read_text())["warnings"][0]


@pytest.mark.parametrize(
    "argument", ["model=vit_nno_patch2_8", "batch=none", "mode=fast", "speed=1", "json=/no/x.json"]
)
def test_a_mistake_ends_with_2_and_one_line(argument, capsys):
    assert benchmark.main([argument]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1


def test_half_precision_has_no_training_step():
    options = load_options(BenchmarkOptions, [*TINY, "precision=fp16"], "benchmark")
    modes = {comparison.mode for comparison in benchmark_run.list_comparisons(options, torch.device("cpu"))}
    assert modes == {"inference", "operators"}


def test_help_lists_the_options_without_loading_torchvision():
    code = (
        "import sys; from vitfast.benchmark import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'torchvision' not in sys.modules and 'timm' not in sys.modules"
    )
    result = run_python("-c", code)
    assert result.returncode == 0, result.stderr
    for key in ("model", "batch", "precision", "mode", "seconds", "threads", "json"):
        assert f"\n  {key} " in result.stdout


@pytest.mark.parametrize("script", ["models", "operators", "training_step"])
def test_a_script_asks_an_allowed_question(script):
    defaults = runpy.run_path(str(SCRIPTS / f"{script}.py"))["DEFAULTS"]
    options = load_options(BenchmarkOptions, defaults, script)
    assert benchmark_run.list_comparisons(options, torch.device("cpu"))
    assert options.mode == {"models": "inference", "operators": "operators", "training_step": "training"}[script]


def test_an_interrupted_run_goes_on(tmp_path):
    path = tmp_path / "results.json"
    options = [*TINY, "mode=operators", f"json={path}"]
    assert benchmark.main([*options, "batch=1"]) == 0
    first = json.loads(path.read_text())["outcomes"]
    assert benchmark.main([*options, "batch=1,2", "resume=true"]) == 0
    both = json.loads(path.read_text())["outcomes"]
    assert both[: len(first)] == first
    assert len(both) == 2 * len(first)


def test_a_run_in_a_hurry_stops_between_comparisons_and_goes_on(tmp_path, capsys, monkeypatch):
    path = tmp_path / "results.json"
    options = [*TINY, "mode=inference", "batch=1,2,3", "libraries=timm", "limits=true", f"json={path}", "resume=true"]
    hours = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: 3600.0 * next(hours))
    monkeypatch.setattr(benchmark_run, "time", clock)
    assert benchmark.main([*options, "stop_after=3000"]) == 0  # a comparison takes an hour by this clock
    assert "2 of 3 comparisons are left; resume=true goes on with them" in capsys.readouterr().out
    monkeypatch.undo()
    assert benchmark.main(options) == 0
    outcomes = json.loads(path.read_text())["outcomes"]
    assert [outcome["labels"]["batch"] for outcome in outcomes] == [1, 2, 3]
    for outcome in outcomes:
        shares = {one["subject"]: (one["peak_share"], one["copy_share"]) for one in outcome["standings"]}
        assert list(shares) == ["vitfast", "timm", "device copy", "device matrix product"]
        assert shares["vitfast"][0] > 0
        assert shares["device copy"] == (None, 1.0)


@pytest.mark.slow
def test_the_stages_for_a_gpu_run_dry():
    """benchmarks/gpu.sh where there is no GPU: the script itself is right."""
    script = SCRIPTS.resolve() / "gpu.sh"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    for stage, expected in (
        ("test", "test_attention"),
        ("sanitize", "--tool racecheck"),
        ("kernels", "[device copy]"),
        ("models", "half of the images leave at each exit"),
        ("training", "the curves agree"),
    ):
        answer = subprocess.run([script, stage], capture_output=True, text=True, env=environment)
        assert answer.returncode == 0, answer.stderr
        assert "a dry run" in answer.stdout
        assert expected in answer.stdout
    assert subprocess.run([script, "fast"], capture_output=True).returncode == 2
