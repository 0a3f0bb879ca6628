"""Chooses into how many parts a batch is split, so that a training step fits into the GPU's memory."""

from __future__ import annotations

import copy
import math

import torch

from vitfast.config.schema import Config
from vitfast.data import ImageDataset
from vitfast.device import autocast
from vitfast.errors import UserError
from vitfast.tasks import Task
from vitfast.training.distributed import Ranks

# tensors of a parameter's size that a step needs beside it: two moments, and the copy that is sent to other ranks
_OPTIMIZER_COPIES = 3


def parts_that_fit(task: Task, config: Config, data: ImageDataset, ranks: Ranks) -> int:
    """Returns the smallest power of two of parts whose training step fits into the memory of every rank's GPU.

    Runs forward and backward passes on noise, from the whole batch down; weights, buffers and random generators are
    unchanged afterwards. The result of training does not depend on the number, up to the order of sums.

    Args:
        task: on its device.
        config: of the run.
        data: whose images have the shape of a batch.
        ranks: that share a batch.

    Returns:
        The number of parts; 1 on a CPU.

    Raises:
        UserError: if not even one image fits.
    """
    if ranks.device.type == "cpu":
        return 1
    images = math.ceil(config.data.batch_size / ranks.world)
    parts = 1
    while not _fits(task, config, data, math.ceil(images / parts)):
        if parts >= images:
            raise UserError(
                f"a training step of one image of {data.img_size} pixels does not fit into the memory of "
                f"{ranks.device}; try train.recompute=true or train.precision=bf16"
            )
        parts *= 2
        torch.cuda.empty_cache()
    return int(ranks.largest(parts)[0])


def _fits(task: Task, config: Config, data: ImageDataset, count: int) -> bool:
    device = next(task.parameters()).device
    buffers = copy.deepcopy(dict(task.named_buffers()))
    learning = [parameter for parameter in task.parameters() if parameter.requires_grad]
    task.train()
    try:
        with torch.random.fork_rng(device_type="cuda", enabled=True):
            reserved = [torch.empty_like(parameter) for parameter in learning for _ in range(_OPTIMIZER_COPIES)]
            images = torch.randn(count, data.in_chans, data.img_size, data.img_size, device=device)
            with autocast(device, config.train.precision):
                loss = task(images, torch.zeros(count, dtype=torch.int64, device=device))["loss"]
            loss.backward()
            del reserved
    except torch.OutOfMemoryError:
        return False
    finally:
        task.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in task.named_buffers():
                buffer.copy_(buffers[name])
    return True
