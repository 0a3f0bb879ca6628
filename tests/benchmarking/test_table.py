from __future__ import annotations

import math
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch

from vitfast import create_model, ops
from vitfast.benchmarking.harness import Spread, Timer
from vitfast.benchmarking.results import table_text
from vitfast.benchmarking.table import Table, agrees, count_gflop, gigabytes, joined, relative_l2


def compare(clock, cases, precision="fp32", reference=None, reference_name="", **work):
    def build(table):
        table.reference, table.reference_name = reference, reference_name
        for name, value in work.items():
            setattr(table, name, value)
        return cases

    table = Table("operators", "a title", {"batch": 2}, precision, build)
    table.measure(Timer(torch.device("cpu"), clock=clock), budget_s=40.0)
    return table


def compare_with_limits(clock, **work):
    cases = [
        clock.case("vitfast", 2.0),
        clock.case("device copy", 0.5, is_limit=True, gigabyte=4.0),
        clock.case("device matrix product", 0.25, is_limit=True, gflop=10.0),
    ]
    return compare(clock, cases, **work)


def rows_of(table):
    return [SimpleNamespace(**row) for row in table.rows]


def test_rates_are_work_over_median_time(clock):
    table = compare(clock, [clock.case("vitfast", 0.5)], images=8, gflop=3.0, gigabyte=0.25)
    (row,) = rows_of(table)
    assert row.time_ms["median"] == 500.0
    assert (row.images_per_s, row.gflop_per_s, row.gigabyte_per_s) == (16.0, 6.0, 0.5)
    assert (table.images, table.gflop, table.gigabyte) == (8, 3.0, 0.25)


def test_work_that_is_not_known_gives_no_rate(clock):
    (row,) = rows_of(compare(clock, [clock.case("vitfast", 0.5)]))
    assert (row.images_per_s, row.gflop_per_s, row.gigabyte_per_s) == (None, None, None)


def test_a_single_case_has_no_rival(clock):
    (row,) = rows_of(compare(clock, [clock.case("vitfast", 0.5)]))
    assert (row.against, row.speedup, row.error) == (None, None, None)


def test_each_case_is_held_against_the_fastest_other_that_is_no_limit(clock):
    cases = [
        clock.case("vitfast", 1.0),
        clock.case("timm", 2.0),
        clock.case("torchvision", 4.0),
        clock.case("copy", 0.25, is_limit=True),
    ]
    rows = {one.subject: one for one in rows_of(compare(clock, cases))}
    assert {name: one.against for name, one in rows.items()} == {
        "vitfast": "timm",
        "timm": "vitfast",
        "torchvision": "vitfast",
        "copy": "vitfast",
    }
    assert rows["vitfast"].speedup == asdict(Spread(2.0, 2.0, 2.0))
    assert rows["torchvision"].speedup == asdict(Spread(0.25, 0.25, 0.25))
    assert rows["copy"].is_limit
    assert not rows["vitfast"].is_limit


def test_the_arithmetic_peak_is_that_of_its_fastest_sample(clock):
    """Threads of a rival go on spinning, or the machine is shared: a limit that counted as slow could be exceeded."""
    peak = clock.case("peak", [9.0, 9.0, 2.0, 8.0, 8.0, 1.0, 8.0], is_limit=True, gflop=4.0)
    cases = [clock.case("vitfast", 0.5, gflop=1.5), peak]
    vitfast, limit = rows_of(compare(clock, cases, images=3, gflop=2.0))
    assert (vitfast.gflop_per_s, limit.gflop_per_s) == (3.0, 4.0)
    assert (vitfast.peak_share, limit.peak_share) == (0.75, 1.0)
    assert (vitfast.images_per_s, limit.images_per_s) == (6.0, 6.0)
    assert limit.time_ms["median"] == 8000.0


def test_results_are_checked_before_anything_is_measured(clock):
    order = []
    case = clock.case("vitfast", 1.0, output=lambda: order.append(len(clock.log)) or torch.ones(2))
    table = compare(clock, [case], reference=torch.tensor([1.0, 1.0]), reference_name="the truth")
    assert order == [0]
    assert table.rows[0]["error"] == 0.0
    assert table.reference_name == "the truth"


@pytest.mark.parametrize(("precision", "agrees"), [("fp32", False), ("bf16", True)])
def test_a_case_that_differs_by_more_than_rounding_is_named(clock, precision, agrees):
    cases = [
        clock.case("vitfast", 1.0, output=lambda: torch.tensor([1.0, 1.01])),
        clock.case("torch", 1.0, output=lambda: torch.ones(2)),
        clock.case("copy", 1.0, is_limit=True),
    ]
    table = compare(clock, cases, precision, reference=torch.ones(2), reference_name="torch in fp64")
    lines = table.disagreements()
    assert len(lines) == (0 if agrees else 1)
    assert all("a title: vitfast differs from torch in fp64 by 7.1e-03" in line for line in lines)


def test_nan_is_a_disagreement(clock):
    case = clock.case("vitfast", 1.0, output=lambda: torch.tensor([float("nan")]))
    table = compare(clock, [case], reference=torch.ones(1))
    assert len(table.disagreements()) == 1


def test_shares_are_rates_over_those_of_the_limits(clock):
    table = compare_with_limits(clock, gflop=20.0, gigabyte=4.0, images=8)
    own, copy, product = rows_of(table)
    assert (own.gflop_per_s, own.gigabyte_per_s) == (10.0, 2.0)
    assert (own.peak_share, own.copy_share) == (0.25, 0.25)
    assert (copy.gigabyte_per_s, copy.copy_share, copy.gflop_per_s, copy.peak_share) == (8.0, 1.0, None, None)
    assert (product.gflop_per_s, product.peak_share, product.gigabyte_per_s) == (40.0, 1.0, None)
    # if the model were nothing but its bytes, or its multiply-adds
    assert (own.images_per_s, copy.images_per_s, product.images_per_s) == (4.0, 16.0, 16.0)
    text = table_text(table)
    assert "of peak" in text
    assert "of copy" in text


def test_work_that_is_not_known_has_no_share(clock):
    own, copy, product = rows_of(compare_with_limits(clock, images=8))
    assert (own.peak_share, own.copy_share) == (None, None)
    assert (copy.images_per_s, product.images_per_s) == (None, None)
    assert copy.copy_share == product.peak_share == 1.0


def test_distance_is_relative_to_the_reference():
    reference = torch.tensor([[3.0, 4.0]])
    assert relative_l2(torch.tensor([[3.0, 4.5]]), reference) == pytest.approx(0.1)
    assert relative_l2(torch.zeros(1, 2), reference) == pytest.approx(1.0)
    assert relative_l2(reference.clone(), reference) == 0.0


def test_small_distances_of_large_vectors_are_not_rounded_away():
    reference = torch.full((100_000,), 1e4)
    result = reference.double() * (1 + 1e-9)
    assert relative_l2(result, reference) == pytest.approx(1e-9, rel=1e-3)


def test_nan_never_agrees():
    error = relative_l2(torch.tensor([1.0, math.nan]), torch.tensor([1.0, 2.0]))
    assert math.isnan(error)
    assert not agrees(error, "bf16")


def test_two_zeros_agree_and_something_beside_zero_does_not():
    assert relative_l2(torch.zeros(3), torch.zeros(3)) == 0.0
    assert not agrees(relative_l2(torch.ones(3), torch.zeros(3)), "bf16")


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\[2, 1\].*\[1, 2\]"):
        relative_l2(torch.ones(2, 1), torch.ones(1, 2))


def test_precisions_allow_what_their_rounding_explains():
    assert agrees(1e-6, "fp32")
    assert not agrees(5e-3, "fp32")
    assert agrees(5e-3, "bf16")
    assert not agrees(0.5, "bf16")


def test_joined_keeps_order_and_widest_type():
    assert joined([torch.tensor([[1.0], [2.0]]), torch.tensor(3)]).tolist() == [1.0, 2.0, 3.0]
    assert joined([torch.ones(2, dtype=torch.bfloat16)]).dtype == torch.float32
    assert joined([torch.ones(2, dtype=torch.float64), torch.ones(1)]).dtype == torch.float64


def vit_gflop(model, batch):
    """By hand: two operations a multiply-add of patch embedding, blocks and head."""
    fields = model.fields
    patches, channels, hidden = fields.grid_size**2, fields.embed_dim, fields.mlp_dim
    tokens = patches + 1
    linear = tokens * channels * (3 * channels + channels + 2 * hidden)
    attention = 2 * tokens * tokens * channels
    embed = patches * channels * fields.in_chans * fields.patch_size**2
    return 2e-9 * batch * (fields.depth * (linear + attention) + embed + channels * fields.num_classes)


@pytest.mark.parametrize("batch", [1, 3])
def test_model_flops_count_gemms(batch):
    model = create_model("vit_nano_patch2_8").eval()
    images = torch.randn(batch, 1, 8, 8)

    def run():
        with torch.inference_mode():
            model(images)

    assert count_gflop(run) == pytest.approx(vit_gflop(model, batch), rel=1e-9)


def test_vit_tiny_has_the_published_count():
    with torch.device("meta"):
        model = create_model("vit_tiny_patch16_224").eval()
    assert vit_gflop(model, 1) == pytest.approx(2.51, rel=0.01)


def test_operators_without_formula_count_zero():
    assert count_gflop(lambda: ops.layer_norm(torch.randn(2, 8))) is None


def test_bytes_are_those_of_the_types():
    assert gigabytes([torch.empty(10, 100), torch.empty(1000, dtype=torch.bfloat16)]) == pytest.approx(6e-6)
