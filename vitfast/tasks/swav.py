"""SwAV: swapped prediction of cluster assignments (Caron et al., 2020, arXiv:2006.09882)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F


@torch.no_grad()
def sinkhorn(scores: Tensor, *, epsilon: float = 0.05, iterations: int = 3, hard: bool = False) -> Tensor:
    """Assigns images to prototypes in equal shares by Sinkhorn's algorithm (Cuturi, 2013; section 3.1 of SwAV).

    exp(scores / epsilon) is alternately divided by the sums of its columns and of its rows. With torch.distributed
    initialized, the columns' sums include the images of all processes, and all must call this function. The numbers
    are logarithms, so that neither large nor very different scores overflow or leave a row empty. The precision is at
    least float32, also under autocast.

    Args:
        scores: similarities of B images and K prototypes ``[B, K]``; B may differ between the processes.
        epsilon: entropy regularization, above 0; a smaller one makes the assignments harder.
        iterations: at least 1.
        hard: whether each image is assigned to its largest share only.

    Returns:
        Assignments ``[B, K]`` whose rows sum to 1, float32 or float64, without gradient.

    Raises:
        ValueError: ``scores`` is not a matrix, or an argument is out of range.
    """
    if scores.ndim != 2:
        raise ValueError(f"scores must be [B, K], got {list(scores.shape)}")
    if not epsilon > 0 or iterations < 1:
        raise ValueError(f"epsilon must be above 0 and iterations at least 1, got {epsilon} and {iterations}")
    log_q_BK = _precise(scores) / epsilon
    for _ in range(iterations):
        log_q_BK = log_q_BK - _log_sum_of_images(log_q_BK)
        log_q_BK = log_q_BK.log_softmax(dim=1)
    if hard:
        return F.one_hot(log_q_BK.argmax(dim=1), log_q_BK.shape[1]).to(log_q_BK.dtype)
    return log_q_BK.exp()


def swav_loss(
    scores: Sequence[Tensor],
    *,
    assign_crops: Sequence[int] = (0, 1),
    temperature: float = 0.1,
    epsilon: float = 0.05,
    iterations: int = 3,
    queue_scores: Sequence[Tensor] | None = None,
    hard: bool = False,
) -> Tensor:
    """Computes the swapped prediction loss (equations 1 and 2 of SwAV, with the multi-crop of section 3.2).

    The assignments of one crop are the targets of all other crops of the same images.

    Args:
        scores: similarities ``[B, K]`` to the prototypes, for each crop.
        assign_crops: the crops whose assignments are computed.
        temperature: of the softmax of the predictions, above 0.
        epsilon: of ``sinkhorn``.
        iterations: of ``sinkhorn``.
        queue_scores: scores ``[L, K]`` of images of earlier batches for each of ``assign_crops``, which balance the
            assignments of small batches; None: none.
        hard: of ``sinkhorn``.

    Returns:
        The mean over crops and images: a scalar, float32 or float64, of value ln K for uniform predictions.

    Raises:
        ValueError: there are fewer than two crops, shapes differ, or an argument is out of range.
    """
    _check_crops(scores, assign_crops, queue_scores, temperature)
    logits = [_precise(one) / temperature for one in scores]
    log_predictions = [one.log_softmax(dim=1) for one in logits]
    losses = []
    for place, crop in enumerate(assign_crops):
        compared = scores[crop].detach()
        if queue_scores is not None:
            compared = torch.cat([compared, queue_scores[place].to(compared.dtype)])
        targets_BK = sinkhorn(compared, epsilon=epsilon, iterations=iterations, hard=hard)[: len(scores[crop])]
        others = [one for index, one in enumerate(log_predictions) if index != crop]
        losses += [-(targets_BK * other).sum(dim=1).mean() for other in others]
    return torch.stack(losses).mean()


class EmbeddingQueue:
    """The embeddings of this process's last images, whose scores join those of a small batch in ``sinkhorn``.

    The rule is that of the original code: the newest embeddings come first, and the queue is used once it is full. Each
    process has a share of the queue. It is no module because DistributedDataParallel would overwrite its buffers with
    those of rank 0.

    Args:
        num_crops: crops whose assignments are computed.
        length: embeddings of each crop; a multiple of the images that are added at a time.
        dim: channels of an embedding.
        device: of the embeddings.
        dtype: of the embeddings.

    Attributes:
        embeddings: ``[num_crops, length, dim]``.
        filled: how many of them have been added, at most ``length``.
    """

    def __init__(
        self,
        num_crops: int,
        length: int,
        dim: int,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.embeddings = torch.zeros(num_crops, length, dim, device=device, dtype=dtype)
        self.filled = 0

    @property
    def is_full(self) -> bool:
        """Whether the queue is in use."""
        return self.filled == self.embeddings.shape[1]

    @torch.no_grad()
    def add(self, embeddings: Tensor) -> None:
        """Adds the embeddings of a batch ``[num_crops, B, dim]`` and drops as many of the oldest."""
        length = self.embeddings.shape[1]
        self.embeddings = torch.cat([embeddings.to(self.embeddings.dtype), self.embeddings], dim=1)[:, :length]
        self.filled = min(self.filled + embeddings.shape[1], length)


def _precise(scores: Tensor) -> Tensor:
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def _log_sum_of_images(log_q_BK: Tensor) -> Tensor:
    """Returns log(sum(exp(log_q_BK))) over the images of all processes, ``[K]``."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return log_q_BK.logsumexp(dim=0)
    lowest = log_q_BK.new_full((1, log_q_BK.shape[1]), torch.finfo(log_q_BK.dtype).min)
    largest_K = torch.cat([log_q_BK, lowest]).amax(dim=0)  # a process may have no image
    dist.all_reduce(largest_K, dist.ReduceOp.MAX)
    sum_K = (log_q_BK - largest_K).exp().sum(dim=0)
    dist.all_reduce(sum_K)
    return largest_K + sum_K.log()


def _check_crops(
    scores: Sequence[Tensor], assign_crops: Sequence[int], queue_scores: Sequence[Tensor] | None, temperature: float
) -> None:
    if len(scores) < 2 or any(one.ndim != 2 or one.shape != scores[0].shape for one in scores):
        raise ValueError(f"scores must list [B, K] for two or more crops, got {[list(one.shape) for one in scores]}")
    if not assign_crops or not all(0 <= crop < len(scores) for crop in assign_crops):
        raise ValueError(f"assign_crops must list crops in 0..{len(scores) - 1}, got {list(assign_crops)}")
    if queue_scores is not None and len(queue_scores) != len(assign_crops):
        raise ValueError(f"queue_scores must have an entry for each of the {len(assign_crops)} assign_crops")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
