"""The classification task."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from vitfast.tasks import ClassificationTask, MultiExitTask, Task


class TwoHeads(nn.Module):
    """A model that returns two logits while it trains and their mean afterwards, as a distilled DeiT."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(12, 5), nn.Linear(12, 5)])

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        first, second = (head(images.flatten(1)) for head in self.heads)
        return (first, second) if self.training else (first + second) / 2


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(7, 3, 2, 2, generator=generator), torch.randint(5, (7,), generator=generator)


def test_a_plain_model_gives_smoothed_cross_entropy_in_training(batch):
    images, labels = batch
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    result = ClassificationTask(model, label_smoothing=0.1)(images, labels)
    logits = model(images)
    assert set(result) == {"loss", "output"}
    assert torch.equal(result["output"], logits)
    expected = functional.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(result["loss"], expected, rtol=0, atol=0)
    result["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_label_smoothing_is_part_of_training_only(batch):
    images, labels = batch
    task = ClassificationTask(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), label_smoothing=0.3)
    training = task(images, labels)["loss"]
    evaluation = task.eval()(images, labels)["loss"]
    assert evaluation == functional.cross_entropy(task.model(images), labels)
    assert training != evaluation


def test_both_heads_of_a_distilled_model_learn(batch):
    images, labels = batch
    task = ClassificationTask(TwoHeads())
    result = task(images, labels)
    first, second = task.model(images)
    expected = (functional.cross_entropy(first, labels) + functional.cross_entropy(second, labels)) / 2
    torch.testing.assert_close(result["loss"], expected)
    torch.testing.assert_close(result["output"], (first + second) / 2)
    result["loss"].backward()
    assert all(head.weight.grad.abs().sum() > 0 for head in task.model.heads)


def test_a_distilled_model_evaluates_to_one_output(batch):
    images, labels = batch
    task = ClassificationTask(TwoHeads()).eval()
    torch.testing.assert_close(task(images, labels)["output"], task.model(images))


def test_loss_and_output_are_float32_under_autocast(batch):
    images, labels = batch
    task = ClassificationTask(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert task.model(images).dtype == torch.bfloat16
        result = task(images, labels)
    assert result["loss"].dtype == result["output"].dtype == torch.float32


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, 2.0])
def test_a_wrong_smoothing_is_named(smoothing):
    with pytest.raises(ValueError, match=r"label_smoothing is .* less than 1"):
        ClassificationTask(nn.Identity(), label_smoothing=smoothing)


def test_a_task_without_a_loss_says_so(batch):
    with pytest.raises(NotImplementedError, match="Task must implement forward"):
        Task(nn.Identity())(*batch)


def test_shares_of_classes_are_labels_too():
    task = ClassificationTask(nn.Linear(4, 3), label_smoothing=0.1)
    images, labels = torch.randn(5, 4), torch.tensor([0, 2, 1, 1, 0])
    whole = task(images, labels)["loss"]
    shares = task(images, nn.functional.one_hot(labels, 3).float())["loss"]
    torch.testing.assert_close(shares, whole)


class ThreeExits(nn.Module):
    num_exits = 3

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(12, 5) for _ in range(3))

    def forward(self, images):
        return tuple(head(images.flatten(1)) for head in self.heads)


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


def test_shares_of_mixed_images_are_labels_of_all_exits_too(batch):
    images, labels = batch
    task = MultiExitTask(ThreeExits())
    shares = functional.one_hot(labels, 5).float()
    torch.testing.assert_close(task(images, shares)["loss"], task(images, labels)["loss"])
