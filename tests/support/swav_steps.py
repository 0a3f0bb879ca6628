"""Ten steps of SwAV on numbers from a formula, as the original codes made them for ``tasks/swav_steps.json``."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from support.formula_weights import formula_numbers
from vitfast.tasks.swav import EmbeddingQueue, sinkhorn, swav_loss

_CROPS, _IMAGES, _IN, _DIM, _PROTOTYPES, _RATE = 4, 4, 6, 3, 5, 0.5


def numbers(name: str, *shape: int) -> Tensor:
    """Makes a float64 tensor of a name and a shape."""
    return torch.from_numpy(formula_numbers(name, torch.Size(shape).numel()).reshape(shape).copy())


def run_steps(*, queue_length: int = 0, hard_steps: int = 0, rank: int = 0, world: int = 1) -> dict[str, object]:
    """Makes the steps of one rank, which has every ``world``-th image; losses and gradients are those of all ranks."""
    weights = [numbers("projection", _DIM, _IN), numbers("prototypes", _PROTOTYPES, _DIM)]
    projection, prototypes = (weight.requires_grad_() for weight in weights)
    queue = EmbeddingQueue(2, queue_length // world, _DIM)
    queue.embeddings = queue.embeddings.double()
    losses = []
    for step in range(10):
        x = numbers(f"step{step}", _CROPS, _IMAGES, _IN)[:, rank::world]
        with torch.no_grad():
            prototypes.copy_(F.normalize(prototypes))
        embeddings = F.normalize(x @ projection.T, dim=-1)
        scores = embeddings @ prototypes.T
        in_use = queue.is_full if queue_length else False
        queued = (queue.embeddings @ prototypes.T).detach().unbind() if in_use else None
        compared = torch.cat([queued[1], scores[1].detach()]) if queued else scores[1].detach()
        assignments = sinkhorn(compared, hard=step < hard_steps)[-len(x[0]) :]
        loss = swav_loss(scores.unbind(), queue_scores=queued, hard=step < hard_steps)
        if queue_length:
            queue.add(embeddings[:2])
        grads = torch.autograd.grad(loss, [projection, prototypes])
        loss = loss.detach()
        for value in (loss, *grads) if world > 1 else ():
            dist.all_reduce(value)
            value /= world
        losses.append(loss.item())
        with torch.no_grad():
            projection -= _RATE * grads[0]
            prototypes -= _RATE * grads[1]
    return {
        "losses": losses,
        "last_projection_grad": grads[0].flatten().tolist(),
        "last_prototypes_grad": grads[1].flatten().tolist(),
        "last_assignments": assignments.tolist(),
        "queue": queue.embeddings.tolist(),
    }
