"""The exponential moving average of the weights."""

from __future__ import annotations

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def create_average(module: nn.Module, decay: float | None) -> AveragedModel | None:
    """Builds a moving average of ``module`` (buffers too), or None when ``decay`` is None.

    The first update copies the weights, so that the average never leans on the random initialisation. Call
    ``update_parameters(module)`` after each optimizer step; the averaged module is ``.module``.

    Args:
        module: what is averaged; it is copied.
        decay: share of the old average that an update keeps, 0 < decay < 1.
    """
    if decay is None:
        return None
    return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True).eval()
