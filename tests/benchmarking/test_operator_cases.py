from __future__ import annotations

import pytest
import torch

from vitfast.benchmarking.operator_cases import OPERATORS
from vitfast.benchmarking.operator_table import operator_sizes, operator_tables
from vitfast.benchmarking.table import agrees, relative_l2
from vitfast.errors import UserError
from vitfast.ops.library import has_kernel

MODEL = "vit_nano_patch2_8"
needs_packed = pytest.mark.skipif(not has_kernel("packed", "cpu"), reason="pure PyTorch: no packed operators")
CPU = torch.device("cpu")


def tables_and_cases(precision="fp32", *, backward=False):
    tables = operator_tables(MODEL, 2, precision, CPU, backward=backward)
    return {table.labels["operator"]: (table, table.cases()) for table in tables}


def test_sizes_are_those_of_the_model():
    sizes = {"batch": 8, "tokens": 197, "channels": 768, "heads": 12, "hidden": 3072}
    assert operator_sizes("vit_base_patch16_224", 8) == sizes
    assert operator_sizes("deit_tiny_distilled_patch16_224", 1)["tokens"] == 198
    assert operator_sizes("vit_base_patch32_224", 1)["tokens"] == 50
    with pytest.raises(UserError, match="vit_base_patch16_224"):
        operator_sizes("vit_bse_patch16_224", 1)


def test_heads_can_be_chosen():
    assert operator_sizes("vit_base_patch16_384", 8, heads=6)["heads"] == 6
    (table,) = operator_tables(MODEL, 2, "fp32", CPU, names=["attention"], heads=1)
    assert table.labels["heads"] == 1  # a separate row in the results
    with pytest.raises(UserError, match="heads=5 does not divide the 64 channels"):
        operator_tables(MODEL, 2, "fp32", CPU, heads=5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("backward", [False, True])
def test_vitfast_and_torch_compute_the_same(precision, backward):
    found = tables_and_cases(precision, backward=backward)
    assert set(found) >= {"attention", "attention_packed", "layer_norm", "add_layer_norm", "mlp"}
    for operator, (table, cases) in found.items():
        reference = table.reference
        for case in cases:
            if not case.is_limit:
                result = case.output()
                assert agrees(relative_l2(result.to(reference.dtype), reference), precision), (operator, case.name)
                assert result.abs().sum() > 0, (operator, case.name)


@needs_packed
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_attention_of_accelerated_models_is_beside_torchs(precision):
    (table,) = operator_tables(MODEL, 2, precision, CPU, names=["packed_attention"])
    cases = table.cases()
    assert [(case.name, case.is_limit) for case in cases] == [
        ("vitfast", False),
        ("torch", False),
        ("torch, q k v apart", True),
    ]
    assert table.gflop == pytest.approx(4e-9 * 2 * 17**2 * 64)
    for others in ({"precision": "fp16"}, {"precision": precision, "backward": True}):
        assert not operator_tables(MODEL, 2, device=CPU, names=["packed_attention"], **others)


@pytest.mark.skipif(not has_kernel("gated_positional_attention", "cpu"), reason="pure PyTorch: three products, not two")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gated_attention_is_beside_attention_alone(precision):
    (table,) = operator_tables(MODEL, 2, precision, CPU, names=["gated_positional_attention"])
    cases = table.cases()
    assert [(case.name, case.is_limit) for case in cases] == [
        ("vitfast", False),
        ("torch", False),
        ("attention without positions", True),
    ]
    assert table.labels["tokens"] == 16  # the 4 x 4 patches, without the class token
    assert table.gflop == pytest.approx(4e-9 * 2 * 16**2 * 64)
    names = ["gated_positional_attention"]
    assert not operator_tables(MODEL, 2, precision, CPU, names=names, backward=True)


def test_operators_can_be_selected():
    found = operator_tables(MODEL, 2, "fp32", CPU, names=["mlp", "layer_norm"])
    assert [table.labels["operator"] for table in found] == ["layer_norm", "mlp"]
    with pytest.raises(UserError, match="operator=mpl is unknown; allowed: all, attention, "):
        operator_tables(MODEL, 2, "fp32", CPU, names=["mpl"])


def test_rounding_is_measured_in_fp32_without_gradients():
    rounding = {name for name in OPERATORS if name.startswith("quantize_float")}
    assert rounding <= set(tables_and_cases())
    assert not rounding & set(tables_and_cases("bf16"))
    assert not rounding & set(tables_and_cases(backward=True))


def test_rounding_agrees_bit_by_bit():
    for operator, (_, cases) in tables_and_cases().items():
        if operator.startswith("quantize_float"):
            own, torchs = (case.output() for case in cases if not case.is_limit)
            assert torch.equal(own, torchs), operator


def test_backward_returns_a_gradient_for_every_input():
    for operator, (_, cases) in tables_and_cases(backward=True).items():
        for case in cases:
            gradients = case.run()
            assert all(gradient.abs().sum() > 0 for gradient in gradients), (operator, case.name)
            assert not case.is_limit


def test_work_is_that_of_the_definition():
    found = tables_and_cases()
    batch, tokens, channels, hidden = 2, 17, 64, 256
    assert found["attention"][0].gflop == pytest.approx(4e-9 * batch * tokens**2 * channels)
    assert found["attention_packed"][0].gflop == found["attention"][0].gflop
    assert found["mlp"][0].gflop == pytest.approx(4e-9 * batch * tokens * channels * hidden)
    assert found["mlp"][0].gigabyte is None
    assert (
        found["linear with gelu"][0].gflop
        == found["linear with scale and residual"][0].gflop
        == found["mlp"][0].gflop / 2
    )
    activation = 4e-9 * batch * tokens * channels
    assert found["layer_norm"][0].gflop is None
    assert found["layer_norm"][0].gigabyte == pytest.approx(2 * activation + 8e-9 * channels)
    assert found["add_layer_norm"][0].gigabyte == pytest.approx(4 * activation + 8e-9 * channels)
    assert found["quantize_float to fp16"][0].gigabyte == pytest.approx(2 * activation)


def test_memory_bound_operators_have_a_copy_beside_them():
    limits = {name: [case.name for case in cases if case.is_limit] for name, (_, cases) in tables_and_cases().items()}
    assert limits["layer_norm"] == ["copy"]
    assert limits["add_layer_norm"] == ["two copies"]
    assert limits["quantize_float to fp16"] == ["copy"]
    assert limits["mlp"] == []


def test_gemm_with_epilogue_is_compared_with_gemm_alone():
    for name, (_, cases) in tables_and_cases("bf16").items():
        if name.startswith("linear"):
            assert [case.name for case in cases if case.is_limit] == ["product alone"]
