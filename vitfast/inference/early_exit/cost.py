"""The cost of each exit: multiply-adds and measured latency."""

from __future__ import annotations

import time
from typing import cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from vitfast.device import synchronize
from vitfast.errors import UserError
from vitfast.inference.early_exit.early_exit import as_exit_model, device_of, evaluation_mode
from vitfast.layers import FeatureReuse, RelationReuse

_WARM_UP = 2


def exit_gmacs(model: nn.Module) -> list[float]:
    """Counts the multiply-adds that one image needs to leave at each exit.

    The count follows Wang et al. (2021): GEMMs, convolutions and attention count, one multiply-add as one operation.
    Normalization, softmax, activations and the interpolation of features and relations to a finer grid are free, so
    vitfast's GEMMs with a fixed interpolation matrix are left out. Only shapes are propagated; nothing is computed.

    Args:
        model: a model with exits.

    Returns:
        For each exit the cumulative cost, including all earlier exits, in 1e9 multiply-adds.

    Raises:
        UserError: the model has no exits, or is an accelerated model.
    """
    exits = as_exit_model(model)
    if getattr(model, "is_accelerated", False):
        raise UserError("multiply-adds are counted on the source model, not on the accelerated one; pass the source")
    costs: list[float] = []
    with (
        evaluation_mode(model),
        torch.no_grad(),
        FakeTensorMode(allow_non_fake_inputs=True),
        FlopCounterMode(display=False) as counter,
    ):
        dtype = next(model.parameters()).dtype
        shape = (1, exits.in_chans, exits.img_size, exits.img_size)
        state = exits.start(torch.empty(shape, dtype=dtype, device=device_of(model)))
        for _ in range(exits.num_exits):
            _, state = exits.advance(state)
            costs.append(counter.get_total_flops() / 2)
    resampling = 0
    for index, stage in enumerate(exits.exits):
        resampling += _resampling_macs(stage)
        costs[index] = (costs[index] - resampling) * 1e-9
    return costs


def _resampling_macs(stage: nn.Module) -> int:
    """Multiply-adds per image of the GEMMs with the matrices of ``GridUpsample``."""
    macs = 0
    for module in stage.modules():
        if isinstance(module, FeatureReuse):
            fine, coarse = module.upsample.matrix.shape
            macs += module.out_dim * (fine - 1) * (coarse - 1)
        elif isinstance(module, RelationReuse):
            fine, coarse = module.upsample.matrix.shape
            channels = cast(nn.Conv2d, module.mlp[-1]).out_channels
            macs += channels * fine * coarse * (coarse + fine)
    return macs


@torch.no_grad()
def exit_latency_ms(model: nn.Module, images: Tensor, *, repeats: int = 9) -> list[float]:
    """Measures the time per image of a batch to leave at each exit.

    All exits run on the whole batch. In use, fewer images reach the later exits, which then take somewhat longer per
    image than measured here.

    Args:
        model: a model with exits.
        images: ``[B, in_chans, img_size, img_size]``, B at least 1, on the model's device.
        repeats: number of timed runs, of which the median is returned; two warm-up runs precede them.

    Returns:
        For each exit the cumulative time, including all earlier exits, in milliseconds per image.

    Raises:
        UserError: the model has no exits.
        ValueError: ``images`` is empty.
    """
    exits = as_exit_model(model)
    if images.shape[0] == 0:
        raise ValueError("images is empty; give at least one to measure with")
    device = device_of(model)
    seconds = torch.zeros(repeats, exits.num_exits, dtype=torch.float64)
    with evaluation_mode(model):
        for repeat in range(-_WARM_UP, repeats):
            synchronize(device)
            start = time.perf_counter()
            state = exits.start(images)
            for index in range(exits.num_exits):
                _, state = exits.advance(state)
                synchronize(device)
                if repeat >= 0:
                    seconds[repeat, index] = time.perf_counter() - start
    return (1e3 * seconds.median(dim=0).values / images.shape[0]).tolist()
