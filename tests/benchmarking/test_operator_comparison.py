from __future__ import annotations

import pytest
import torch

from vitfast.benchmarking.agreement import agrees, relative_l2
from vitfast.benchmarking.operator_cases import OPERATORS, Sizes
from vitfast.benchmarking.operator_comparison import operator_comparisons
from vitfast.errors import UserError
from vitfast.ops.library import has_kernel
from vitfast.ops.packed import has_packed

MODEL = "vit_nano_patch2_8"
needs_packed = pytest.mark.skipif(not has_packed("packed_attention"), reason="pure PyTorch: no packed operators")
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


def test_heads_can_be_chosen():
    assert Sizes.of_model("vit_base_patch16_384", 8, heads=6).head_dim == 128
    (comparison,) = operator_comparisons(MODEL, 2, "fp32", CPU, names=["attention"], heads=1)
    assert comparison.labels["heads"] == 1  # a row of its own in the results
    with pytest.raises(UserError, match="heads=5 do not share the 64 channels"):
        operator_comparisons(MODEL, 2, "fp32", CPU, heads=5)


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


@needs_packed
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_attention_of_accelerated_models_stands_beside_torchs(precision):
    (comparison,) = operator_comparisons(MODEL, 2, precision, CPU, names=["packed_attention"])
    contest = comparison.build()
    assert [(subject.name, subject.is_limit) for subject in contest.subjects] == [
        ("vitfast", False),
        ("torch", False),
        ("torch, q k v apart", True),
    ]
    assert contest.gflop == pytest.approx(4e-9 * 2 * 17**2 * 64)
    for others in ({"precision": "fp16"}, {"precision": precision, "backward": True}):
        assert not operator_comparisons(MODEL, 2, device=CPU, names=["packed_attention"], **others)


@pytest.mark.skipif(not has_kernel("gated_positional_attention", "cpu"), reason="pure PyTorch: three products, not two")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gated_attention_stands_beside_attention_alone(precision):
    (comparison,) = operator_comparisons(MODEL, 2, precision, CPU, names=["gated_positional_attention"])
    contest = comparison.build()
    assert [(subject.name, subject.is_limit) for subject in contest.subjects] == [
        ("vitfast", False),
        ("torch", False),
        ("attention without positions", True),
    ]
    assert comparison.labels["tokens"] == 16  # the 4 x 4 patches, without the class token
    assert contest.gflop == pytest.approx(4e-9 * 2 * 16**2 * 64)
    names = ["gated_positional_attention"]
    assert not operator_comparisons(MODEL, 2, precision, CPU, names=names, backward=True)


def test_some_operators_can_be_asked_for():
    found = operator_comparisons(MODEL, 2, "fp32", CPU, names=["mlp", "layer_norm"])
    assert [comparison.labels["operator"] for comparison in found] == ["layer_norm", "mlp"]
    with pytest.raises(UserError, match="operator=mpl is unknown; allowed: all, attention, "):
        operator_comparisons(MODEL, 2, "fp32", CPU, names=["mpl"])


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
