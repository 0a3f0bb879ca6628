"""How long it takes to reach each exit, measured."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from vitfast.inference.exit_model import as_exit_model, device_of, synchronize

_WARM_UP = 2


@torch.no_grad()
def exit_latency_ms(model: nn.Module, images: Tensor, *, repeats: int = 9) -> list[float]:
    """Measures the time that an image of a batch needs to leave at each exit.

    All exits run on the whole batch. In use fewer images reach the later ones, which then take somewhat longer for each
    of them than is measured here.

    Args:
        model: a model with exits.
        images: ``[B, in_chans, img_size, img_size]``, B at least 1, on the model's device.
        repeats: runs of which the median counts, after two that do not.

    Returns:
        For each exit milliseconds an image (the batch's divided by B), those of the exits before included.

    Raises:
        UserError: the model has no exits.
        ValueError: there are no images.
    """
    exits = as_exit_model(model)
    if images.shape[0] == 0:
        raise ValueError("images is empty; give at least one to measure with")
    device = device_of(exits)
    was_training = model.training
    model.eval()
    seconds = torch.zeros(repeats, exits.num_exits, dtype=torch.float64)
    try:
        for repeat in range(-_WARM_UP, repeats):
            synchronize(device)
            start = time.perf_counter()
            state = exits.start(images)
            for index in range(exits.num_exits):
                _, state = exits.advance(state)
                synchronize(device)
                if repeat >= 0:
                    seconds[repeat, index] = time.perf_counter() - start
    finally:
        model.train(was_training)
    return (1e3 * seconds.median(dim=0).values / images.shape[0]).tolist()
