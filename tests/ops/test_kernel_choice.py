"""The choice between vitfast's kernels and torch's operators within a process."""

from __future__ import annotations

import pytest
import torch

import vitfast
from vitfast import ops
from vitfast.ops.kernel_choice import KERNELS, chosen_kernels
from vitfast.ops.library import has_kernel, missing_kernel

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
def test_what_was_chosen_runs_and_the_rest_is_torchs(choice: str, expected: set[str]) -> None:
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


def test_wrong_choices_are_told() -> None:
    for choice in ("fast", "attention,fast", "", "packed", "auto,attention"):
        with pytest.raises(vitfast.UserError, match="is unknown; allowed: auto, torch, all, or names"):
            chosen_kernels(choice, "cpu").__enter__()
    with pytest.raises(vitfast.UserError, match="vitfast has no mlp kernel for cuda here"):
        chosen_kernels("attention,mlp" if not missing_kernel("attention", "cuda") else "mlp", "cuda").__enter__()
    assert active() == set(KERNELS)


def test_all_means_those_that_there_are() -> None:
    with chosen_kernels("all", "cuda"):
        assert active("cuda") == {kernel for kernel in KERNELS if missing_kernel(kernel, "cuda") is None}
