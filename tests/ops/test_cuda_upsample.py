"""The CUDA kernel of upsample_relations as an operator, on a GPU. Its arithmetic is tested without one, in tests/simt.

``VITFAST_CUDA_KERNELS=all`` makes it run before it is verified.
"""

from __future__ import annotations

import pytest
import torch

from support import plain
from support.simt_upsample import UpsampleCase, random_upsample
from vitfast import ops
from vitfast.layers import GridUpsample
from vitfast.ops.library import has_kernel
from vitfast.ops.tolerance import BACKWARD_FACTOR, assert_as_accurate

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def _needs_kernels() -> None:
    if not has_kernel("upsample_relations", "cuda"):
        pytest.skip("torch's operators run on this GPU: set VITFAST_CUDA_KERNELS=all")


def check(case: UpsampleCase) -> None:
    """Holds the kernel against float64."""
    out = torch.ops.vitfast.upsample_relations.default(case.x.cuda(), case.matrix.cuda())
    case.check({"out": out.cpu()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("grids", [(1, 2), (7, 10), (10, 14), (14, 10), (14, 24)], ids=str)
@pytest.mark.parametrize("leading", [(1, 4), (80, 6)])  # a head in parts, and whole
def test_it_is_accurate(leading: tuple[int, int], grids: tuple[int, int], dtype: torch.dtype) -> None:
    check(random_upsample(leading, grids, dtype))


def test_it_reads_any_strides() -> None:
    channels_last = torch.randn(2, 101, 101, 12).bfloat16().permute(0, 3, 1, 2)
    for x in (channels_last[:, 4:8], channels_last.contiguous().mT):
        check(UpsampleCase(x, GridUpsample(10, 14).matrix))


@pytest.mark.parametrize("shape", [(0, 2, 5, 5), (2, 0, 5, 5)])
def test_it_takes_empty_tensors(shape: tuple[int, ...]) -> None:
    x = torch.empty(shape, device="cuda")
    assert ops.upsample_relations(x, GridUpsample(2, 3).matrix.cuda()).numel() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_gradient_is_accurate(dtype: torch.dtype) -> None:
    case = random_upsample((3, 2), (7, 10), dtype)
    grad = torch.randn(3, 2, 101, 101).to(dtype)
    leaf = case.x.cuda().requires_grad_()
    torch.ops.vitfast.upsample_relations.default(leaf, case.matrix.cuda()).backward(grad.cuda())
    assert leaf.grad is not None
    back = case.matrix.t()
    same = plain.upsample_relations(grad.float(), back).to(dtype)
    exact = plain.upsample_relations(grad.double(), back.double())
    assert_as_accurate(leaf.grad.cpu(), same, exact, factor=BACKWARD_FACTOR)


def test_unsupported_sizes_few_heads_and_float64_run_on_torch() -> None:
    for case in (
        random_upsample((150, 1), torch.randn(8, 400)),
        random_upsample((1, 2), (7, 10)),
    ):  # 400 x 400: 625 KiB
        case.check({"out": ops.upsample_relations(case.x.cuda(), case.matrix.cuda()).cpu()})
    x, matrix = torch.randn(1, 2, 5, 5, dtype=torch.float64), GridUpsample(2, 3).matrix
    expected = ops.upsample_relations(x, matrix)
    torch.testing.assert_close(ops.upsample_relations(x.cuda(), matrix.cuda()).cpu(), expected)


def test_it_runs_in_a_graph() -> None:
    x, matrix = torch.randn(80, 4, 50, 50, device="cuda"), GridUpsample(7, 10).matrix.cuda()
    ops.upsample_relations(x, matrix)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = ops.upsample_relations(x, matrix)
    x.copy_(torch.randn_like(x))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(result, ops.upsample_relations(x, matrix))
