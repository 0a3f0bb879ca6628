"""Calibration: observes the ranges of activations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vitfast.errors import UserError
from vitfast.quantization.quantize import quantization_mode, quantized_modules
from vitfast.quantization.quantized_module import QuantizedModule


def calibrate(model: nn.Module, loader: Iterable[Any], *, batches: int = 10) -> int:
    """Observes the activation ranges of a quantized model, in evaluation mode and without rounding.

    Under ``torch.distributed`` every process must call this with its own batches; the ranges are reduced over all
    processes. Only ``Int8Config(activations="calibrated")`` needs calibration; without such layers nothing is run. A
    second call widens the ranges of the first.

    Args:
        model: quantized, prepared or converted.
        loader: yields images ``[B, C, height, width]``, or tuples or lists that begin with them.
        batches: number of batches used, at least 1.

    Returns:
        The number of layers that were calibrated.

    Raises:
        UserError: the model is not quantized, ``batches`` is below 1, or the loaders of all processes are empty.
    """
    if batches < 1:
        raise UserError(f"batches must be at least 1; got {batches}")
    with quantization_mode(model, "observe"):
        observed = calibrated_layers(model)
        if not observed:
            return 0
        was_training = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            with torch.no_grad():
                count = 0
                for batch in islice(loader, batches):
                    model(images_of(batch, model))
                    count += 1
        finally:
            for module, training in was_training:
                module.training = training
    if not _agree(observed, count):
        raise UserError("loader yields no batch to calibrate with")
    for layer in observed:
        layer.quantization.calibrated = True
    return len(observed)


def calibrated_layers(model: nn.Module) -> list[QuantizedModule]:
    """Returns the layers that need ``calibrate``."""
    return [module for module in quantized_modules(model).values() if hasattr(module, "activation_range")]


def _agree(observed: Sequence[QuantizedModule], count: int) -> int:
    """Reduces the ranges over all processes; returns the total number of batches."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return count
    ranges = torch.stack([layer.get_buffer("activation_range") for layer in observed])
    ranges[:, 0].neg_()  # minimum and maximum in one reduction
    total = ranges.new_tensor(count)
    dist.all_reduce(ranges, dist.ReduceOp.MAX)
    dist.all_reduce(total)
    ranges[:, 0].neg_()
    for layer, bounds in zip(observed, ranges, strict=True):
        layer.activation_range.copy_(bounds)  # type: ignore[operator]
    return int(total)


def images_of(batch: Any, model: nn.Module) -> Tensor:
    """Returns the images of a loader's batch on the model's device; raises a UserError if it has none."""
    images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(images, Tensor):
        raise UserError(
            f"loader must yield images [B, C, height, width], alone or first in a tuple; got {type(batch).__name__}"
        )
    return images.to(next(model.parameters()).device)
