from __future__ import annotations

import sys

import pytest
import torch

from vitfast.benchmarking.engines import ENGINES, Configuration
from vitfast.benchmarking.model_cases import build_models, engine_table, model_table, sample_images, seeded_model
from vitfast.benchmarking.peers import Unavailable, failure, timm_model
from vitfast.benchmarking.table import agrees, relative_l2
from vitfast.ops.library import has_kernel

MODEL = "vit_nano_patch2_8"
CPU = torch.device("cpu")


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_all_libraries_give_the_same_result(mode, precision):
    table = model_table(mode, MODEL, 3, precision, CPU)
    assert (table.mode, table.precision, table.labels) == (mode, precision, {"model": MODEL, "batch": 3})
    cases = table.cases()
    names = [case.name for case in cases]
    assert names[:2] == ["vitfast", "torchvision"]
    assert set(names) | set(table.left_out) == {"vitfast", "torchvision", "timm"}
    assert "torchvision in fp32" in table.reference_name
    assert table.images == 3
    reference = table.reference
    for case in cases:
        error = relative_l2(case.output().to(reference.dtype), reference)
        assert agrees(error, precision), case.name
        assert (error > 1e-4) == (precision == "bf16"), f"{case.name} did not run in {precision}: {error}"


def test_a_step_counts_three_times_the_work_of_a_forward_pass():
    forward = model_table("inference", MODEL, 2, "fp32", CPU)
    step = model_table("training", MODEL, 2, "fp32", CPU)
    forward.cases()
    step.cases()
    assert 2.9 < step.gflop / forward.gflop < 3.2  # attention recomputes its logits; the images need no gradient


def test_a_step_moves_every_weight_and_its_averages():
    table = model_table("training", MODEL, 2, "fp32", CPU, libraries=["timm"])
    cases = table.cases()
    assert {case.name for case in cases} <= {"vitfast", "timm"}
    parameters = sum(parameter.numel() for parameter in cases[0].run.model.parameters())
    assert table.gigabyte == pytest.approx(4e-9 * (6 * parameters + 2 * 8 * 8), rel=1e-2)


def test_a_training_step_learns_and_a_check_does_not():
    table = model_table("training", MODEL, 2, "fp32", CPU)
    cases = table.cases()
    for case in cases:
        parameters = list(case.run.model.parameters())
        before = [parameter.detach().clone() for parameter in parameters]
        case.output()
        assert all(torch.equal(old, new) for old, new in zip(before, parameters, strict=True)), case.name
        case.run()
        assert not any(torch.equal(old, new) for old, new in zip(before, parameters, strict=True)), case.name


def test_inference_runs_in_evaluation_mode_without_gradients():
    table = model_table("inference", MODEL, 2, "fp32", CPU)
    cases = table.cases()
    for case in cases:
        logits = case.run()
        assert logits.shape == (2, 1000)
        assert logits.is_inference()


def test_weights_are_the_same_in_every_run_and_torchs_generator_is_left_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first, _ = build_models(MODEL, CPU)
    assert torch.equal(torch.rand(1), expected)
    second, _ = build_models(MODEL, CPU)
    assert torch.equal(first["vitfast"].head.weight, second["vitfast"].head.weight)


def test_a_library_without_the_architecture_is_left_out_with_the_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm.models.deit", None)
    models, left_out = build_models(MODEL, CPU)
    assert set(models) == {"vitfast", "torchvision"}
    assert "pip install timm" in left_out["timm"]


@pytest.mark.slow
def test_engines_run_in_processes_and_agree_with_the_source(monkeypatch):
    monkeypatch.setitem(ENGINES, "compile", {"broken": Configuration(int, ("int8",))})
    monkeypatch.setitem(ENGINES, "openvino", {"latency": ENGINES["openvino"]["latency"]})  # each takes 7 s
    table = engine_table(MODEL, 3, "int8", ["eager", "openvino", "compile"])
    with table.processes:
        cases = table.cases()
        timed = [case for case in cases if not case.is_limit]
        names = [case.name for case in timed]
        assert names[0] == "vitfast"
        assert set(names[1:]) | set(table.left_out) == {"eager", "openvino", "compile"}
        assert table.left_out["eager"] == "runs no int8"
        assert table.left_out["compile"].startswith("failed: TypeError: int() takes")
        for case in timed:
            assert 1e-5 < relative_l2(case.output(), table.reference) < 0.2, case.name
            durations = case.times(3)
            assert len(durations) == 3
            assert min(durations) > 0
    assert table.images == 3
    assert timed[0].gflop < table.gflop, "the last block computes less than the source's"
    assert any(case.is_limit for case in cases) == has_kernel("packed", "cpu")


CONFIGURATIONS = [(engine, label) for engine in ("eager", "onnxruntime", "openvino") for label in ENGINES[engine]]


@pytest.mark.parametrize(("engine", "label"), CONFIGURATIONS)
def test_configurations_agree_with_the_source(engine, label, tmp_path):
    configuration = ENGINES[engine][label]
    precision = "fp32" if "fp32" in configuration.precisions else "int8"
    source = seeded_model(MODEL)
    images = sample_images(source, 8)
    with torch.inference_mode():
        expected = source(images)
    try:
        configuration.check(precision)
        result = configuration.engine(timm_model(source), images, precision, tmp_path)()
    except Unavailable as error:
        pytest.skip(failure(error))
    error = relative_l2(result.float(), expected)
    assert agrees(error, precision)
    assert (error > 1e-4) == (precision == "int8")
