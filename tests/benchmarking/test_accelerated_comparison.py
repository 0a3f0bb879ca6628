from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

from vitfast.benchmarking.accelerated_comparison import accelerated_comparison, early_exit_comparison
from vitfast.benchmarking.accelerated_run import AcceleratedOptions, list_accelerated_comparisons
from vitfast.benchmarking.agreement import agrees, relative_l2
from vitfast.config import load_options
from vitfast.errors import UserError

CPU = torch.device("cpu")


@pytest.mark.parametrize(("model", "rival"), [("vit_nano_patch2_8", "timm eager"), ("dvt_nano_16", "source eager")])
def test_all_compute_the_same(model, rival):
    contest = accelerated_comparison(model, 2, "bf16", CPU, compile_mode=None).build()
    assert [subject.name for subject in contest.subjects] == ["vitfast", rival]
    reference = contest.reference()
    for subject in contest.subjects:
        error = relative_l2(subject.output(), reference)
        assert agrees(error, "bf16"), subject.name
        assert error > 1e-4, f"{subject.name} did not run in bf16"
    assert contest.images == 2
    assert contest.gflop > 0
    assert contest.gigabyte > 0


def test_what_does_not_compile_is_left_out_with_the_reason(monkeypatch):
    def refuse(model, **options):
        raise RuntimeError("no compiler here\nsecond line")

    def compile_to_refusal(model, **options):
        assert options == {"dynamic": False, "mode": "max-autotune"}
        return refuse

    monkeypatch.setattr(torch, "compile", compile_to_refusal)
    contest = accelerated_comparison("vit_nano_patch2_8", 1, "bf16", CPU, compile_mode="max-autotune").build()
    assert [subject.name for subject in contest.subjects] == ["vitfast", "timm eager"]
    assert contest.left_out == {"timm compiled": "failed: RuntimeError: no compiler here"}


def test_half_of_the_images_leave_early():
    contest = early_exit_comparison("dvt_nano_16", 8, "fp32", CPU).build()
    assert [subject.name for subject in contest.subjects] == ["vitfast", "source eager"]
    for subject in contest.subjects:
        logits, exits = subject.run()
        assert logits.shape[0] == 8
        assert 3 <= int((exits == 0).sum()) <= 5
    everything = accelerated_comparison("dvt_nano_16", 8, "fp32", CPU, compile_mode=None).build()
    assert 0.3 * everything.gflop < contest.gflop < 0.9 * everything.gflop
    assert contest.gigabyte == pytest.approx(everything.gigabyte, rel=0.2)


def test_the_questions_are_asked_size_by_size():
    options = load_options(
        AcceleratedOptions, ["model=vit_nano_patch2_8,dvt_nano_16", "batch=4,1", "precision=bf16"], "accelerated"
    )
    titles = [comparison.title for comparison in list_accelerated_comparisons(options, CPU)]
    assert titles == [
        "vit_nano_patch2_8, batch 4, bf16, accelerated",
        "dvt_nano_16, batch 4, bf16, accelerated",
        "dvt_nano_16, batch 4, bf16, half of the images leave at each exit",
        "vit_nano_patch2_8, batch 1, bf16, accelerated",
        "dvt_nano_16, batch 1, bf16, accelerated",
        "dvt_nano_16, batch 1, bf16, half of the images leave at each exit",
    ]


def test_the_script_asks_allowed_questions():
    script = Path(__file__).parents[2] / "benchmarks" / "accelerated.py"
    assert callable(runpy.run_path(str(script))["measure_accelerated"])
    options = load_options(AcceleratedOptions, [], "accelerated")
    assert len({one.title for one in list_accelerated_comparisons(options, CPU)}) == 2 * 5 * 7


def test_a_list_may_stand_in_brackets_and_has_each_value_once():
    options = load_options(AcceleratedOptions, ["model=[vit_nano_patch2_8]", "precision=bf16,fp32,bf16"], "accelerated")
    assert options.models() == ["vit_nano_patch2_8"]
    assert options.precisions() == ["bf16", "fp32"]


@pytest.mark.parametrize("argument", ["model=vit_nono", "precision=int8", "batch=0", "json=results.txt"])
def test_mistakes_are_told(argument):
    with pytest.raises(UserError, match=argument.partition("=")[0]):
        load_options(AcceleratedOptions, [argument], "accelerated")
