"""What it costs to reach each exit, in multiply-adds."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from vitfast.errors import UserError
from vitfast.inference.exit_model import as_exit_model, device_of
from vitfast.layers import FeatureReuse, RelationReuse


def exit_gmacs(model: nn.Module) -> list[float]:
    """Counts the multiply-adds of the products, convolutions and attention that an image needs to leave at each exit.

    This is how Wang et al. (2021) state the cost of a Dynamic Vision Transformer: one multiply-add is one operation;
    normalisation, softmax and activations are free, and so is bringing features and relations to a finer grid, which
    they interpolate. vitfast's products with a fixed matrix, for the same, are therefore left out.

    Nothing is computed: the shapes alone are followed.

    Args:
        model: a model with exits.

    Returns:
        For each exit 1e9 multiply-adds, those of the exits before included.

    Raises:
        UserError: the model has no exits, or is an accelerated one.
    """
    exits = as_exit_model(model)
    if getattr(model, "is_accelerated", False):
        raise UserError("multiply-adds are counted on the source model, not on the accelerated one; give the source")
    was_training = model.training
    model.eval()
    costs: list[float] = []
    try:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
            dtype = next(model.parameters()).dtype
            shape = (1, exits.in_chans, exits.img_size, exits.img_size)
            state = exits.start(torch.empty(shape, dtype=dtype, device=device_of(exits)))
            for _ in range(exits.num_exits):
                _, state = exits.advance(state)
                costs.append(counter.get_total_flops() / 2)
    finally:
        model.train(was_training)
    resampling = 0
    for index, stage in enumerate(exits.exits):
        resampling += _resampling_macs(stage)
        costs[index] = (costs[index] - resampling) * 1e-9
    return costs


def _resampling_macs(stage: nn.Module) -> int:
    """Multiply-adds of the products with the matrices of ``GridUpsample``, for one image."""
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
