from __future__ import annotations

import sys

import pytest
import torch

from vitfast.benchmarking.agreement import agrees, relative_l2
from vitfast.benchmarking.model_comparison import build_models, inference_comparison
from vitfast.benchmarking.training_comparison import training_comparison

MODEL = "vit_nano_patch2_8"
CPU = torch.device("cpu")
QUESTIONS = {"inference": inference_comparison, "training": training_comparison}


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_all_libraries_give_the_same_result(mode, precision):
    comparison = QUESTIONS[mode](MODEL, 3, precision, CPU)
    assert (comparison.mode, comparison.precision, comparison.labels) == (mode, precision, {"model": MODEL, "batch": 3})
    contest = comparison.build()
    names = [subject.name for subject in contest.subjects]
    assert names[:2] == ["vitfast", "torchvision"]
    assert set(names) | set(contest.left_out) == {"vitfast", "torchvision", "timm"}
    assert "torchvision in fp32" in contest.reference_name
    assert contest.images == 3
    reference = contest.reference()
    for subject in contest.subjects:
        error = relative_l2(subject.output().to(reference.dtype), reference)
        assert agrees(error, precision), subject.name
        assert (error > 1e-4) == (precision == "bf16"), f"{subject.name} did not run in {precision}: {error}"


def test_a_step_counts_three_times_the_work_of_a_forward_pass():
    forward = inference_comparison(MODEL, 2, "fp32", CPU).build().gflop
    step = training_comparison(MODEL, 2, "fp32", CPU).build().gflop
    assert 2.9 < step / forward < 3.2  # attention recomputes its logits; the images need no gradient


def test_a_step_moves_every_weight_and_its_averages():
    contest = training_comparison(MODEL, 2, "fp32", CPU, libraries=["timm"]).build()
    assert {subject.name for subject in contest.subjects} <= {"vitfast", "timm"}
    parameters = sum(parameter.numel() for parameter in contest.subjects[0].run.model.parameters())
    assert contest.gigabyte == pytest.approx(4e-9 * (6 * parameters + 2 * 8 * 8), rel=1e-2)


def test_a_training_step_learns_and_a_check_does_not():
    contest = training_comparison(MODEL, 2, "fp32", CPU).build()
    for subject in contest.subjects:
        parameters = list(subject.run.model.parameters())
        before = [parameter.detach().clone() for parameter in parameters]
        subject.output()
        assert all(torch.equal(old, new) for old, new in zip(before, parameters, strict=True)), subject.name
        subject.run()
        assert not any(torch.equal(old, new) for old, new in zip(before, parameters, strict=True)), subject.name


def test_inference_runs_in_evaluation_mode_without_gradients():
    contest = inference_comparison(MODEL, 2, "fp32", CPU).build()
    for subject in contest.subjects:
        logits = subject.run()
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
