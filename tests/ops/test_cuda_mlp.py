"""The MLP's CUDA kernel as an operator, on a GPU. Its arithmetic is tested without one, in tests/simt.

``VITFAST_CUDA_KERNELS=all`` makes it run before a committed result proves it.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from support.simt_mlp import MlpCase, random_mlp
from vitfast import ops
from vitfast.ops.library import has_kernel

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def _needs_kernels() -> None:
    if not has_kernel("mlp", "cuda"):
        pytest.skip("torch's operators run on this GPU: set VITFAST_CUDA_KERNELS=all")


def run(case: MlpCase) -> Tensor:
    """The operator on the GPU, its result on the CPU."""
    tensors = (case.x, case.fc1_weight, case.fc1_bias, case.fc2_weight, case.fc2_bias)
    on_gpu = [None if tensor is None else tensor.cuda() for tensor in tensors]
    residual = None if case.residual is None else case.residual.cuda()
    return ops.mlp(*on_gpu, residual=residual).cpu()  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("channels", "hidden"), [(64, 256), (96, 384), (128, 136), (192, 768)])
@pytest.mark.parametrize("rows", [1, 197, 197 * 64])  # the last: tiles of 128 rows
def test_mlp_is_accurate(rows: int, channels: int, hidden: int, dtype: torch.dtype) -> None:
    case = random_mlp(rows, channels, hidden, dtype)
    case.check({"out": run(case)})


def test_it_equals_the_emulation_but_for_the_order_of_sums() -> None:
    case = random_mlp(197, 192, 768)
    torch.testing.assert_close(run(case), case.run()["out"], rtol=2e-3, atol=2e-3)


def test_it_reads_any_strides() -> None:
    case = random_mlp(50, 64, 256, biases=False, residual=False)
    expected = run(case)
    x, fc1_weight, fc2_weight = case.x.cuda(), case.fc1_weight.cuda(), case.fc2_weight.cuda()
    shifted = torch.empty(x.numel() + 1, device="cuda").half()[1:].view(x.shape).copy_(x)  # no multiple of 16 bytes
    assert torch.equal(ops.mlp(shifted, fc1_weight, None, fc2_weight, None).cpu(), expected)
    assert torch.equal(ops.mlp(x, fc1_weight.T.contiguous().T, None, fc2_weight, None).cpu(), expected)


def test_what_it_does_not_take_runs_on_torch() -> None:
    case = random_mlp(20, 200, 400)  # too wide
    case.check({"out": run(case)})
    leaf = random_mlp(20, 64, 64).x.cuda().requires_grad_()
    weight = torch.eye(64, device="cuda").half()
    ops.mlp(leaf, weight, None, weight, None).sum().backward()
    assert leaf.grad is not None
