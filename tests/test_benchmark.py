from __future__ import annotations

import importlib.util
import itertools
import json
import os
import runpy
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from support.subprocesses import run_python
from vitfast import benchmark
from vitfast.benchmarking import run as benchmark_run
from vitfast.benchmarking.engines import ENGINES
from vitfast.benchmarking.table import Table
from vitfast.commands.benchmark import list_tables
from vitfast.commands.command_options import PEER_NAMES, BenchmarkOptions
from vitfast.config import load_options
from vitfast.errors import UserError
from vitfast.ops.library import has_kernel

SCRIPTS = Path(__file__).parent.parent / "benchmarks"
TINY = ["model=vit_nano_patch2_8", "batch=1,2", "seconds=0.01", "device=cpu", "threads=1"]
# tests/benchmarking/test_operator_cases.py has all
OPERATORS = "operator=layer_norm,add_layer_norm"


def test_it_measures_models_and_operators_and_writes_the_results(tmp_path, capsys):
    path = tmp_path / "results.json"
    threads = torch.get_num_threads()
    assert benchmark.main([*TINY, OPERATORS, f"json={path}"]) == 0
    assert torch.get_num_threads() == threads
    printed = capsys.readouterr()
    assert str(path) in printed.err
    content = json.loads(path.read_text())
    assert content["machine"]["cpu"]["threads"] == 1
    assert content["options"]["batch"] == [1, 2]
    outcomes = content["outcomes"]
    modes = [outcome["mode"] for outcome in outcomes]
    assert modes == ["inference"] * 2 + ["training"] * 2 + ["operators"] * 4
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


def test_a_wrong_result_is_reported_and_ends_with_1(monkeypatch, capsys):
    operators = "vitfast.benchmarking.operator_cases.ops.layer_norm"
    monkeypatch.setattr(operators, lambda x, weight, bias: x * weight + bias)
    assert benchmark.main([*TINY, "mode=operators", OPERATORS]) == 1
    assert "layer_norm forward" in (message := capsys.readouterr().err)
    assert "vitfast differs from torch in fp64" in message
    assert "add_layer_norm forward" not in message


def test_out_of_memory_is_reported_and_the_others_continue(monkeypatch, capsys, tmp_path):
    measured = Table.measure

    def measure(table, timer, budget_s):
        if table.labels["batch"] == 1:
            raise torch.OutOfMemoryError("too much")
        measured(table, timer, budget_s)

    monkeypatch.setattr(Table, "measure", measure)
    path = tmp_path / "results.json"
    assert benchmark.main([*TINY, "mode=inference", "libraries=timm", f"json={path}"]) == 0
    assert "vit_nano_patch2_8, batch 1, fp32: the device does not have enough memory" in capsys.readouterr().err
    content = json.loads(path.read_text())
    assert [outcome["labels"]["batch"] for outcome in content["outcomes"]] == [2]
    assert any("not have enough memory" in warning for warning in content["warnings"])


def test_a_busy_machine_is_reported_and_stays_with_the_results(monkeypatch, capsys, tmp_path):
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
    modes = {table.mode for table in list_tables(options, torch.device("cpu"))}
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
    assert list_tables(options, torch.device("cpu"))
    assert options.mode == {"models": "inference", "operators": "operators", "training_step": "training"}[script]


def test_an_interrupted_run_continues(tmp_path):
    path = tmp_path / "results.json"
    options = [*TINY, "mode=operators", OPERATORS, f"json={path}"]
    assert benchmark.main([*options, "batch=1"]) == 0
    first = json.loads(path.read_text())["outcomes"]
    assert benchmark.main([*options, "batch=1,2", "resume=true"]) == 0
    both = json.loads(path.read_text())["outcomes"]
    assert both[: len(first)] == first
    assert len(both) == 2 * len(first)


def test_a_run_in_a_hurry_stops_between_tables_and_continues(tmp_path, capsys, monkeypatch):
    path = tmp_path / "results.json"
    options = [*TINY, "mode=inference", "batch=1,2,3", "libraries=timm", "limits=true", f"json={path}", "resume=true"]
    hours = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: 3600.0 * next(hours))
    monkeypatch.setattr(benchmark_run, "time", clock)
    assert benchmark.main([*options, "stop_after=3000"]) == 0  # a table takes an hour by this clock
    assert "2 of 3 tables are left; resume=true continues with them" in capsys.readouterr().out
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
def test_the_stages_for_a_gpu_run_dry(tmp_path: Path) -> None:
    """benchmarks/gpu.sh where there is no GPU: the script itself is right."""
    script = SCRIPTS.resolve() / "gpu.sh"
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "OUT": str(tmp_path),
        "PYTHON": sys.executable,
        "LIMIT_S": "1200",
    }
    answer = subprocess.run([script], capture_output=True, text=True, env=environment)
    assert answer.returncode == 0, answer.stdout
    assert "no GPU: this was a dry run on the CPU, and nothing was measured" in answer.stdout
    assert "not finished" not in answer.stdout
    for expected in ("test_attention", "--tool racecheck", "[device copy]", "half of the images leave at each exit"):
        assert expected in answer.stdout
    assert "the curves agree" in (tmp_path / "loss-curve.log").read_text()


def test_a_part_for_a_gpu_that_fails_does_not_end_the_rest(tmp_path: Path) -> None:
    """On a bare machine the script names the missing packages; without verify and without pytest it goes on."""
    script = SCRIPTS.resolve() / "gpu.sh"
    python = tmp_path / "python"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OUT": str(tmp_path), "PYTHON": str(python)}

    def run(body: str, *stages: str) -> subprocess.CompletedProcess[str]:
        python.write_text(f"#!/bin/sh\n{body}\n")
        python.chmod(0o755)
        return subprocess.run([script, *stages], capture_output=True, text=True, env=environment)

    bare = run("echo omegaconf", "kernels")
    assert bare.returncode == 2
    assert "missing packages: omegaconf" in bare.stderr
    answer = run(
        'case "$*" in *pytest*tests/ops*|*loss_curve*) exit 1 ;; *verify*) exit 2 ;; esac', "verify", "test", "training"
    )
    assert answer.returncode == 1
    assert "failed: test-ops loss-curve." in answer.stdout
    assert (tmp_path / "test-simt.log").exists()
    assert run("", "fast").returncode == 2


def test_names_of_peers():
    assert list(ENGINES) == list(PEER_NAMES)
    assert load_options(BenchmarkOptions, ["peers=all", "precision=int8"], "benchmark").engines() == list(PEER_NAMES)
    for arguments, message in (
        (["peers=tensorrt"], "allowed: one of: none, all, eager"),
        (["peers=all", "mode=training"], "leave mode, compile, operator, backward out"),
        (["peers=all", "precision=fp16"], "precision=fp16 is unknown; allowed: fp32, bf16, int8, fp16_32"),
    ):
        with pytest.raises(UserError, match=message):
            load_options(BenchmarkOptions, arguments, "benchmark").check()


@pytest.mark.slow
def test_peers_give_table_results_and_chart(tmp_path, capsys):
    path = tmp_path / "engines.json"
    arguments = ["model=vit_nano_patch2_8", "batch=1", "seconds=0.01", "device=cpu", "peers=eager,openvino"]
    assert benchmark.main([*arguments, "threads=1", f"json={path}"]) == 0
    outcomes = json.loads(path.read_text())["outcomes"]
    assert [outcome["mode"] for outcome in outcomes] == ["engines"]
    own = outcomes[0]["standings"][0]
    assert own["subject"] == "vitfast"
    rivals = {one["subject"]: one["time_ms"]["median"] for one in outcomes[0]["standings"][1:] if not one["is_limit"]}
    assert rivals.keys() | outcomes[0]["left_out"].keys() == {"eager", "openvino"}
    assert "eager" in rivals
    assert own["against"] == min(rivals, key=rivals.get)
    assert own["speedup"]["median"] > 0
    limits = [one for one in outcomes[0]["standings"] if one["is_limit"]]
    assert bool(limits) == has_kernel("packed", "cpu")
    if limits:
        assert limits[0]["peak_share"] == pytest.approx(1.0)
        assert own["peak_share"] > 0
    printed = capsys.readouterr()
    assert "vit_nano_patch2_8, batch 1, fp32, engines" in printed.out
    assert path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert str(path.with_suffix(".png")) in printed.err
    missing = importlib.util.find_spec("openvino") is None
    assert ("without openvino: the comparison needs openvino: pip install openvino" in printed.out) == missing


def load(*arguments):
    return load_options(BenchmarkOptions, list(arguments), "python -m vitfast.benchmark")


def test_lists_are_split_and_each_value_is_kept_once():
    options = load("model=ViT-B_16,vit_base_patch16_224,vit_nano_patch2_8", "batch=8, 1,8", "precision=[bf16,fp32]")
    tables = [table for table in list_tables(options, torch.device("cpu")) if table.mode == "inference"]
    assert [(table.labels["model"], table.precision, table.labels["batch"]) for table in tables] == [
        *product(["vit_base_patch16_224", "vit_nano_patch2_8"], ["bf16", "fp32"], [8, 1])
    ]


def test_libraries_are_all_or_some():
    for argument, libraries in (("libraries=all", {"torchvision", "timm"}), ("libraries=timm", {"timm"})):
        (table,) = list_tables(load(argument, "model=vit_nano_patch2_8", "mode=inference"), torch.device("cpu"))
        assert {case.name for case in table.cases()} | table.left_out.keys() == {"vitfast"} | libraries


def test_defaults_are_allowed():
    options = load()
    assert options.model == ["vit_tiny_patch16_224"]
    assert (options.batch, options.precision, options.mode) == ([8], ["fp32"], "all")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=vit_tny_patch16_224"], "vit_tiny_patch16_224"),
        (["model="], "model= has no value"),
        (["batch=0"], r"batch=\[0\] is not allowed; allowed: >= 1"),
        (["batch=8,-1"], "allowed: >= 1"),
        (["batch=1.5"], "expected a list of whole numbers"),
        (["batch=²"], "expected a list of whole numbers"),
        (["batch=1,,8"], "cannot be read; expected a list of whole numbers"),
        (["precision=int8"], "precision=int8 is unknown; allowed: fp32, bf16, fp16"),
        (["precision=fp16", "mode=training"], "use bf16"),
        (["mode=speed"], "allowed: one of: inference, training, operators, all"),
        (["mode=inference", "backward=true"], "use mode=operators"),
        (["mode=training", "operator=mlp"], "operator=mlp is about single operators; mode=training has none"),
        (["libraries=keras"], "allowed: one of: all, torchvision, timm"),
        (["mode=operators", "compile=true"], "use mode=inference or training"),
        (["seconds=0"], "seconds=0"),
        (["threads=0"], "threads=0"),
        (["btach=8"], "did you mean batch"),
        (["json=results.txt"], r"must end in \.json"),
        (["json=/no/such/folder/a.json"], "there is no folder /no/such/folder"),
    ],
)
def test_mistakes_are_reported_before_anything_is_measured(arguments, message):
    with pytest.raises(UserError, match=message):
        load(*arguments)


def test_a_folder_is_no_file_for_results(tmp_path):
    folder = tmp_path / "a.json"
    folder.mkdir()
    with pytest.raises(UserError, match="is a folder"):
        load(f"json={folder}")
