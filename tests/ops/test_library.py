"""The choice between vitfast's kernels and torch's operators within a process."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import vitfast
from vitfast import ops
from vitfast.ops.library import KERNELS, chosen_kernels, has_kernel, missing_kernel

pytestmark = pytest.mark.skipif(missing_kernel("mlp", "cpu") is not None, reason="vitfast's kernels are not built")


def active(device: str = "cpu") -> set[str]:
    return {kernel for kernel in KERNELS if has_kernel(kernel, device)}


def operators_of(kernel_call) -> set[str]:
    """Names of vitfast's raw operators that a call runs."""
    with torch.profiler.profile() as profile:
        kernel_call()
    return {event.key for event in profile.key_averages() if event.key.startswith("vitfast::")}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("auto", set(KERNELS)),
        ("all", set(KERNELS)),
        ("torch", set()),
        ("layer_norm", {"layer_norm"}),
        ("attention, mlp", {"attention", "mlp"}),
    ],
)
def test_chosen_kernels_run_and_the_rest_is_torch(choice: str, expected: set[str]) -> None:
    before = vitfast.build_info()["kernels"]
    x, qkv = torch.randn(2, 5, 16), torch.randn(2, 5, 3, 2, 8)
    expected_result = ops.layer_norm(x)
    with chosen_kernels(choice, "cpu"):
        assert active() == expected
        found = operators_of(lambda: (ops.layer_norm(x), ops.attention_packed(qkv)))
        assert ("vitfast::layer_norm_forward" in found) == ("layer_norm" in expected)
        assert ("vitfast::attention_packed_forward" in found) == ("attention" in expected)
        torch.testing.assert_close(ops.layer_norm(x), expected_result)
        states = {kernel: state["cpu"] for kernel, state in vitfast.build_info()["kernels"].items()}
    for kernel in KERNELS:
        assert states[kernel] == ("vitfast" if kernel in expected else f"torch: ops.kernels={choice}")
    assert vitfast.build_info()["kernels"] == before


def test_other_devices_and_accelerated_models_are_left_alone() -> None:
    cuda = active("cuda")
    with chosen_kernels("torch", "cpu"):
        assert active("cuda") == cuda
        assert has_kernel("packed", "cpu")
        assert has_kernel("attention", "meta")


def test_an_error_within_ends_the_choice() -> None:
    with pytest.raises(KeyError), chosen_kernels("torch", "cpu"):
        raise KeyError
    assert active() == set(KERNELS)


def test_wrong_choices_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    for choice in ("fast", "attention,fast", "", "packed", "auto,attention"):
        with pytest.raises(vitfast.UserError, match="is unknown; allowed: auto, torch, all, or names"):
            chosen_kernels(choice, "cpu").__enter__()
    monkeypatch.setattr("vitfast.ops.library.CUDA_KERNELS", ())
    with pytest.raises(vitfast.UserError, match="vitfast has no mlp kernel for cuda here"):
        chosen_kernels("mlp", "cuda").__enter__()
    assert active() == set(KERNELS)


def test_all_means_those_that_there_are() -> None:
    with chosen_kernels("all", "cuda"):
        assert active("cuda") == {kernel for kernel in KERNELS if missing_kernel(kernel, "cuda") is None}


@pytest.mark.parametrize("parameter_dtype", [torch.float32, None], ids=["float32", "same"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_layer_norm_on_torchs_operators_is_the_fused_one(dtype: torch.dtype, parameter_dtype: torch.dtype) -> None:
    x, residual = torch.randn(2, 7, 3, 40).to(dtype)
    weight, bias = torch.randn(2, 40).to(parameter_dtype or dtype)
    exact = F.layer_norm((x + residual).double(), (40,), weight.double(), bias.double(), 1e-5)
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    leaf = x.clone().requires_grad_()
    with chosen_kernels("torch", "cpu"), torch.autocast("cpu", torch.bfloat16):
        summed, normalized = ops.add_layer_norm(leaf, residual, weight, bias)
        assert torch.equal(ops.layer_norm(x + residual, weight, bias), normalized)
        with torch.profiler.profile() as profile:
            ops.layer_norm(x, weight, bias)
    assert "aten::native_layer_norm" in {event.key for event in profile.key_averages()}
    assert normalized.dtype == dtype
    assert torch.equal(summed, x + residual)
    torch.testing.assert_close(normalized.double(), exact, rtol=tolerance, atol=tolerance)
    gradients = [torch.autograd.grad(one.sum(), leaf, retain_graph=True)[0] for one in (normalized, summed)]
    with chosen_kernels("all", "cpu"):
        expected = ops.add_layer_norm(leaf, residual, weight, bias)[1]
    torch.testing.assert_close(gradients[0], torch.autograd.grad(expected.sum(), leaf)[0], rtol=0.05, atol=0.05)
    assert torch.equal(gradients[1], torch.ones_like(x))
