"""Accuracy of a linear classifier that is trained on frozen features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR

from vitfast.errors import UserError

_BATCH_SIZE = 256
_MOMENTUM = 0.9


@dataclass(frozen=True)
class LinearProtocol:
    """A published setting, by SGD with momentum 0.9 in batches of 256.

    Attributes:
        epochs: length of the training.
        lr: initial learning rate.
        weight_decay: of the linear layer, weight and bias.
        milestones: epochs after which the learning rate is divided by 10; empty: it decays to 0 by a cosine. It
            changes after an epoch.
        nesterov: whether the momentum is Nesterov's.
        batch_norm: whether a BatchNorm precedes the linear layer, as in VISSL's head ``eval_mlp``.
    """

    epochs: int
    lr: float
    weight_decay: float
    milestones: tuple[int, ...] = ()
    nesterov: bool = False
    batch_norm: bool = False


LINEAR_PROTOCOLS = {
    "original": LinearProtocol(epochs=100, lr=0.3, weight_decay=1e-6),  # SwAV, eval_linear.py
    # eval_resnet_8gpu_transfer_in1k_linear.yaml
    "vissl": LinearProtocol(28, lr=0.01, weight_decay=5e-4, milestones=(8, 16, 24), nesterov=True, batch_norm=True),
}


def linear_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    num_classes: int,
    protocol: LinearProtocol,
    seed: int = 0,
) -> float:
    """Trains a linear classifier on the training images and evaluates it after the last epoch.

    The original protocols augment the training images anew in each epoch; features of one view have no augmentation.

    Args:
        train_features: ``[N, C]`` float32.
        train_labels: ``[N]``, below ``num_classes``.
        test_features: ``[M, C]``.
        test_labels: ``[M]``.
        num_classes: outputs of the classifier.
        protocol: the setting.
        seed: of the initial weights and the order of the images.

    Returns:
        Share of the test images whose largest logit is the label's, 0..1.

    Raises:
        UserError: there are fewer than two training images, or the training diverges.
    """
    count, channels = train_features.shape
    if count < 2:
        raise UserError(f"a linear probe needs at least two training images, got {count}")
    generator = torch.Generator().manual_seed(seed)
    linear = _linear(channels, num_classes, protocol, generator)
    norm: nn.Module = nn.BatchNorm1d(channels) if protocol.batch_norm else nn.Identity()
    classifier = nn.Sequential(norm, linear).to(train_features.device)
    groups: list[dict[str, Any]] = [{"params": linear.parameters()}]
    if protocol.batch_norm:
        groups.append({"params": norm.parameters(), "weight_decay": 0.0})  # as VISSL's regularize_bn: False
    optimizer = torch.optim.SGD(
        groups,
        lr=protocol.lr,
        momentum=_MOMENTUM,
        weight_decay=protocol.weight_decay,
        nesterov=protocol.nesterov,
    )
    schedule: LRScheduler = (
        MultiStepLR(optimizer, list(protocol.milestones))
        if protocol.milestones
        else CosineAnnealingLR(optimizer, protocol.epochs)
    )
    for _ in range(protocol.epochs):
        batches = torch.randperm(count, generator=generator).to(train_features.device).split(_BATCH_SIZE)
        for batch in batches:
            if len(batch) == 1:  # has no variance for BatchNorm
                continue
            loss = F.cross_entropy(classifier(train_features[batch]), train_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    if not all(parameter.isfinite().all() for parameter in classifier.parameters()):
        raise UserError(f"the linear probe diverged with lr={protocol.lr:g}; the features are too large for it")
    classifier.eval()
    with torch.inference_mode():
        predicted = torch.cat([classifier(block).argmax(dim=1) for block in test_features.split(4096)])
    return float((predicted == test_labels).double().mean())


def _linear(channels: int, num_classes: int, protocol: LinearProtocol, generator: torch.Generator) -> nn.Linear:
    """Creates the linear layer: N(0, 0.01) and bias 0, or with BatchNorm torch's initialization, as the originals."""
    linear: nn.Linear = nn.utils.skip_init(nn.Linear, channels, num_classes)
    bound = channels**-0.5
    if protocol.batch_norm:
        nn.init.uniform_(linear.weight, -bound, bound, generator=generator)
        nn.init.uniform_(linear.bias, -bound, bound, generator=generator)
    else:
        nn.init.normal_(linear.weight, std=0.01, generator=generator)
        nn.init.zeros_(linear.bias)
    return linear
