"""All exits learn together."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from vitfast.tasks import MultiExitTask


class ThreeExits(nn.Module):
    num_exits = 3

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(12, 5) for _ in range(3))

    def forward(self, images):
        return tuple(head(images.flatten(1)) for head in self.heads)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 3, 2, 2, generator=generator), torch.randint(5, (6,), generator=generator)


def test_training_adds_the_exits_losses(batch):
    images, labels = batch
    task = MultiExitTask(ThreeExits(), label_smoothing=0.1)
    result = task(images, labels)
    expected = sum(functional.cross_entropy(logits, labels, label_smoothing=0.1) for logits in task.model(images))
    torch.testing.assert_close(result["loss"], expected)
    torch.testing.assert_close(result["exits"], torch.stack(task.model(images)))
    assert torch.equal(result["output"], result["exits"][2])
    result["loss"].backward()
    assert all(head.weight.grad.abs().sum() > 0 for head in task.model.heads)


def test_evaluation_measures_the_last_exit(batch):
    images, labels = batch
    task = MultiExitTask(ThreeExits(), label_smoothing=0.1).eval()
    torch.testing.assert_close(task(images, labels)["loss"], functional.cross_entropy(task.model(images)[2], labels))


def test_shares_of_mixed_images_are_labels_too(batch):
    images, labels = batch
    task = MultiExitTask(ThreeExits())
    shares = functional.one_hot(labels, 5).float()
    torch.testing.assert_close(task(images, shares)["loss"], task(images, labels)["loss"])
