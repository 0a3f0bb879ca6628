from __future__ import annotations

import pytest
import torch

from support.scripts import load_script
from vitfast.benchmarking.table import agrees, relative_l2
from vitfast.config import load_options
from vitfast.errors import UserError

accelerated = load_script("accelerated")
CPU = torch.device("cpu")


def load(*arguments):
    return load_options(accelerated.AcceleratedOptions, list(arguments), "benchmarks/accelerated.py")


@pytest.mark.parametrize(("model", "rival"), [("vit_nano_patch2_8", "timm eager"), ("dvt_nano_16", "source eager")])
def test_all_compute_the_same(model, rival):
    table = accelerated.accelerated_table(model, 2, "bf16", CPU, compile_mode="none")
    cases = table.cases()
    assert [case.name for case in cases] == ["vitfast", rival]
    reference = table.reference
    for case in cases:
        error = relative_l2(case.output(), reference)
        assert agrees(error, "bf16"), case.name
        assert error > 1e-4, f"{case.name} did not run in bf16"
    assert table.images == 2
    assert table.gflop > 0
    assert table.gigabyte > 0


def test_peers_that_do_not_compile_are_skipped_with_the_reason(monkeypatch):
    def refuse(model, **options):
        raise RuntimeError("no compiler here\nsecond line")

    def compile_to_refusal(model, **options):
        assert options == {"dynamic": False, "mode": "max-autotune"}
        return refuse

    monkeypatch.setattr(torch, "compile", compile_to_refusal)
    table = accelerated.accelerated_table("vit_nano_patch2_8", 1, "bf16", CPU, compile_mode="max-autotune")
    cases = table.cases()
    assert [case.name for case in cases] == ["vitfast", "timm eager"]
    assert table.left_out == {"timm compiled": "failed: RuntimeError: no compiler here"}


def test_half_of_the_images_leave_early():
    table = accelerated.early_exit_table("dvt_nano_16", 8, "fp32", CPU)
    cases = table.cases()
    assert [case.name for case in cases] == ["vitfast", "source eager"]
    for case in cases:
        logits, exits = case.run()
        assert logits.shape[0] == 8
        assert 3 <= int((exits == 0).sum()) <= 5
    everything = accelerated.accelerated_table("dvt_nano_16", 8, "fp32", CPU, compile_mode="none")
    everything.cases()
    assert 0.3 * everything.gflop < table.gflop < 0.9 * everything.gflop
    assert table.gigabyte == pytest.approx(everything.gigabyte, rel=0.2)


def test_cases_are_grouped_by_size():
    options = load_options(
        accelerated.AcceleratedOptions,
        ["model=vit_nano_patch2_8,dvt_nano_16", "batch=4,1", "precision=bf16"],
        "accelerated",
    )
    titles = [table.title for table in accelerated.list_tables(options, CPU)]
    assert titles == [
        "vit_nano_patch2_8, batch 4, bf16, accelerated",
        "dvt_nano_16, batch 4, bf16, accelerated",
        "dvt_nano_16, batch 4, bf16, half of the images leave at each exit",
        "vit_nano_patch2_8, batch 1, bf16, accelerated",
        "dvt_nano_16, batch 1, bf16, accelerated",
        "dvt_nano_16, batch 1, bf16, half of the images leave at each exit",
    ]


def test_defaults_are_allowed():
    options = load()
    assert len({one.title for one in accelerated.list_tables(options, CPU)}) == 2 * 5 * 7


def test_lists_may_have_brackets_and_repeated_values_are_dropped():
    options = load_options(
        accelerated.AcceleratedOptions, ["model=[vit_nano_patch2_8]", "precision=bf16,fp32,bf16"], "accelerated"
    )
    titles = [table.title for table in accelerated.list_tables(options, CPU)]
    assert len(titles) == len(set(titles)) == 2 * 5
    assert {title.split(",")[2] for title in titles} == {" bf16", " fp32"}


@pytest.mark.parametrize("argument", ["model=vit_nono", "precision=int8", "batch=0", "json=results.txt"])
def test_mistakes_are_reported(argument):
    with pytest.raises(UserError, match=argument.partition("=")[0]):
        load(argument)
