"""BatchNorm with the statistics of several ranks, on GPUs by torch's SyncBatchNorm and on CPUs by an equivalent."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vitfast.errors import UserError
from vitfast.training.distributed import Ranks


def synchronize_batch_norms(module: nn.Module, group_size: int, ranks: Ranks) -> None:
    """Replaces the BatchNorms of a module in place by ones whose statistics are those of a group of ranks.

    Parameters and buffers stay the same tensors. All ranks must call it.

    Args:
        module: with BatchNorms below it.
        group_size: consecutive ranks that form a group, at most all; 0: all; -1: those of a node (VISSL's values).
        ranks: of the run.

    Raises:
        UserError: the ranks cannot be divided into such groups.
    """
    if ranks.world == 1:
        return
    size = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if group_size == -1 else group_size or ranks.world
    size = min(size, ranks.world)
    if ranks.world % size:
        raise UserError(f"train.sync_bn={group_size}: {ranks.world} processes cannot be divided into groups of {size}")
    # every rank has to create all groups
    groups = [dist.new_group(list(range(first, first + size))) for first in range(0, ranks.world, size)]
    group = groups[ranks.rank // size]
    if ranks.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(module, group)
        return
    for submodule in module.modules():
        if isinstance(submodule, _BatchNorm):
            submodule.__class__ = CpuSyncBatchNorm
            submodule.__dict__["process_group"] = group


class CpuSyncBatchNorm(_BatchNorm):
    """A BatchNorm that has the statistics and gradients of torch's SyncBatchNorm, which needs a GPU.

    It is not derived from that, because DistributedDataParallel refuses it on a CPU.

    Attributes:
        process_group: the ranks that share statistics.
    """

    process_group: Any

    def _check_input_dim(self, input: Tensor) -> None:
        """Accepts any number of dimensions."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalizes ``[B, C, ...]``; B may differ between the ranks."""
        if not self.training:
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        shape = [1, -1, *[1] * (x.dim() - 2)]
        axes = [axis for axis in range(x.dim()) if axis != 1]
        count = _sum_over_ranks(x.new_tensor(x.numel() / x.shape[1]), self.process_group)
        mean_C = _sum_over_ranks(x.sum(axes), self.process_group) / count
        centered = x - mean_C.view(shape)
        variance_C = _sum_over_ranks(centered.square().sum(axes), self.process_group) / count
        self._update_statistics(mean_C.detach(), variance_C.detach() * (count / (count - 1)))
        result = centered * (variance_C + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            result = result * self.weight.view(shape) + self.bias.view(shape)
        return result.to(input.dtype)

    @torch.no_grad()
    def _update_statistics(self, mean_C: Tensor, variance_C: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(variance_C.to(self.running_var.dtype), momentum)


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = tensor.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


def _sum_over_ranks(tensor: Tensor, group: Any) -> Tensor:
    total: Tensor = _SumOverRanks.apply(tensor, group)
    return total
