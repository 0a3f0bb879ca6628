"""ConViT's attention as an operator and in its models, on a GPU. Its arithmetic is tested without one, in tests/simt.

``VITFAST_CUDA_KERNELS=all`` makes it run before it is verified.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

import vitfast
from support.accelerable import accelerable, sample_images
from support.simt_attention import GatedAttentionCase, last_key_gated, random_gated
from vitfast import ops
from vitfast.ops.library import has_kernel

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def _needs_kernels() -> None:
    if not has_kernel("gated_positional_attention", "cuda"):
        pytest.skip("torch's operators run on this GPU: set VITFAST_CUDA_KERNELS=all")


def kernel(qkv: Tensor, position: Tensor, gate: Tensor) -> Tensor:
    """The raw operator, which runs the kernel also for few heads."""
    out: Tensor = torch.ops.vitfast.gated_positional_attention.default(qkv, position, gate, qkv.shape[-1] ** -0.5)
    return out


def run(case: GatedAttentionCase) -> Tensor:
    """The kernel's result, on the CPU."""
    return kernel(case.qkv.cuda(), case.position.cuda(), case.gate.cuda()).cpu()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [16, 32, 48, 64])
@pytest.mark.parametrize("tokens", [1, 16, 49, 100, 144, 196, 200])
def test_it_is_accurate(tokens: int, head_dim: int, dtype: torch.dtype) -> None:
    for case in (random_gated(5, 3, tokens, head_dim, dtype), last_key_gated(tokens, head_dim, dtype)):
        case.check({"out": run(case)})


@pytest.mark.parametrize("sizes", [(5, 3, 196, 48), (60, 3, 289, 48), (60, 3, 100, 128)])
def test_few_heads_and_other_sizes_take_two_operators(sizes: tuple[int, int, int, int]) -> None:
    case = random_gated(*sizes)
    out = ops.gated_positional_attention(case.qkv.cuda(), case.position.cuda(), case.gate.cuda())
    case.check({"out": out.cpu()})


def test_it_equals_the_emulation_but_for_the_order_of_sums() -> None:
    case = random_gated(2, 3, 196, 48)
    torch.testing.assert_close(run(case), case.run()["out"], rtol=2e-3, atol=5e-4)


@pytest.mark.parametrize("tokens", [49, 196])
def test_it_reads_any_strides(tokens: int) -> None:
    case = random_gated(2, 3, tokens, 48)
    expected = run(case)
    qkv, position, gate = case.qkv.cuda(), case.position.cuda(), case.gate.cuda()
    shifted = torch.empty(position.numel() + 1, device="cuda").half()[1:].view(position.shape).copy_(position)
    rows_apart = torch.nn.functional.pad(position, (0, 5), value=torch.nan)[..., :tokens]
    for other in (shifted, rows_apart, position.mT.contiguous().mT):
        assert torch.equal(kernel(qkv, other, gate).cpu(), expected)
    spread = torch.stack([gate, gate], 1)[:, 0]
    assert torch.equal(kernel(qkv.transpose(1, 3).contiguous().transpose(1, 3), position, spread).cpu(), expected)


@pytest.mark.parametrize("shape", [(0, 49, 3, 3, 48), (2, 0, 3, 3, 48), (2, 49, 3, 0, 48)])
def test_it_takes_empty_tensors(shape: tuple[int, ...]) -> None:
    _, tokens, _, heads, _ = shape
    qkv = torch.empty(shape, device="cuda").half()
    position, gate = qkv.new_empty(heads, tokens, tokens), qkv.new_empty(heads)
    assert ops.gated_positional_attention(qkv, position, gate).numel() == 0


def test_it_passes_opcheck() -> None:
    case = random_gated(2, 3, 49, 48)
    arguments = (case.qkv.cuda(), case.position.cuda(), case.gate.cuda(), 0.125)
    torch.library.opcheck(torch.ops.vitfast.gated_positional_attention.default, arguments)


def test_a_gradient_is_computed_by_others() -> None:
    case = random_gated(2, 3, 49, 48)
    leaf = case.qkv.cuda().requires_grad_()
    ops.gated_positional_attention(leaf, case.position.cuda(), case.gate.cuda()).sum().backward()
    assert leaf.grad is not None


@torch.no_grad()
def test_a_convit_runs_on_it() -> None:
    source = accelerable("vitfast: convit")
    images = sample_images(source).repeat(64, 1, 1, 1)  # with fewer heads in the batch, torch's operators run
    expected = source(images)
    for model in (copy.deepcopy(source).cuda().half(), vitfast.accelerate(source, "fp16", device="cuda")):
        with torch.profiler.profile() as profile:
            found = model(images.cuda().to(next(model.parameters(), images).dtype))
        assert "vitfast::gated_positional_attention" in {event.key for event in profile.key_averages()}
        assert (found.cpu().float() - expected).norm() < 1e-2 * expected.norm()
