from __future__ import annotations

import pytest
import torch

from vitfast.benchmarking.agreement import agrees, relative_l2
from vitfast.benchmarking.operator_cases import OPERATORS, Sizes
from vitfast.benchmarking.operator_comparison import operator_comparisons
from vitfast.errors import UserError

MODEL = "vit_nano_patch2_8"
CPU = torch.device("cpu")


def contests(precision="fp32", *, backward=False):
    comparisons = operator_comparisons(MODEL, 2, precision, CPU, backward=backward)
    return {comparison.labels["operator"]: comparison.build() for comparison in comparisons}


def test_sizes_are_those_of_the_model():
    assert Sizes.of_model("vit_base_patch16_224", 8) == Sizes(batch=8, tokens=197, channels=768, heads=12, hidden=3072)
    assert Sizes.of_model("deit_tiny_distilled_patch16_224", 1).tokens == 198
    assert Sizes.of_model("vit_base_patch32_224", 1).tokens == 50
    with pytest.raises(UserError, match="vit_base_patch16_224"):
        Sizes.of_model("vit_bse_patch16_224", 1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("backward", [False, True])
def test_vitfast_and_torch_compute_the_same(precision, backward):
    found = contests(precision, backward=backward)
    assert set(found) >= {"attention", "attention_packed", "layer_norm", "add_layer_norm", "mlp"}
    for operator, contest in found.items():
        reference = contest.reference()
        for subject in contest.subjects:
            if not subject.is_limit:
                result = subject.output()
                assert agrees(relative_l2(result.to(reference.dtype), reference), precision), (operator, subject.name)
                assert result.abs().sum() > 0, (operator, subject.name)


def test_rounding_is_measured_where_torch_has_its_twin():
    rounding = {name for name in OPERATORS if name.startswith("quantize_float")}
    assert rounding <= set(contests())
    assert not rounding & set(contests("bf16"))
    assert not rounding & set(contests(backward=True))


def test_rounding_agrees_bit_by_bit():
    for operator, contest in contests().items():
        if operator.startswith("quantize_float"):
            own, torchs = (subject.output() for subject in contest.subjects if not subject.is_limit)
            assert torch.equal(own, torchs), operator


def test_backward_returns_a_gradient_for_every_input():
    for operator, contest in contests(backward=True).items():
        for subject in contest.subjects:
            gradients = subject.run()
            assert all(gradient.abs().sum() > 0 for gradient in gradients), (operator, subject.name)
            assert not subject.is_limit


def test_work_is_that_of_the_definition():
    found = contests()
    batch, tokens, channels, hidden = 2, 17, 64, 256
    assert found["attention"].gflop == pytest.approx(4e-9 * batch * tokens**2 * channels)
    assert found["attention_packed"].gflop == found["attention"].gflop
    assert found["mlp"].gflop == pytest.approx(4e-9 * batch * tokens * channels * hidden)
    assert found["mlp"].gigabyte is None
    assert found["linear with gelu"].gflop == found["linear with residual"].gflop == found["mlp"].gflop / 2
    activation = 4e-9 * batch * tokens * channels
    assert found["layer_norm"].gflop is None
    assert found["layer_norm"].gigabyte == pytest.approx(2 * activation + 8e-9 * channels)
    assert found["add_layer_norm"].gigabyte == pytest.approx(4 * activation + 8e-9 * channels)
    assert found["quantize_float to fp16"].gigabyte == pytest.approx(2 * activation)


def test_memory_bound_operators_have_a_copy_beside_them():
    limits = {
        name: [subject.name for subject in contest.subjects if subject.is_limit] for name, contest in contests().items()
    }
    assert limits["layer_norm"] == ["copy"]
    assert limits["add_layer_norm"] == ["two copies"]
    assert limits["quantize_float to fp16"] == ["copy"]
    assert limits["mlp"] == []


def test_a_product_with_an_epilogue_has_the_product_alone_beside_it():
    for name, contest in contests("bf16").items():
        if name.startswith("linear"):
            assert [subject.name for subject in contest.subjects if subject.is_limit] == ["product alone"]
