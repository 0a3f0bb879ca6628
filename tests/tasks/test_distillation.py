"""Distillation from labels and a teacher, as DeiT and as myrtle-vision define it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from vitfast.tasks import DistillationTask, Teacher


class TwoHeads(nn.Module):
    """Two heads in training, their mean in evaluation, as DeiT."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(12, 5) for _ in range(2))

    def forward(self, images):
        first, second = (head(images.flatten(1)) for head in self.heads)
        return (first, second) if self.training else (first + second) / 2


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 3, 2, 2, generator=generator), torch.randint(5, (6,), generator=generator)


def teacher(mean=(0.0,) * 3, std=(1.0,) * 3) -> Teacher:
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 5))
    return Teacher(network, mean, std, (0.0,) * 3, (1.0,) * 3)


def test_hard_is_the_teachers_first_choice(batch):
    images, labels = batch
    task = DistillationTask(TwoHeads(), teacher(), alpha=0.3, label_smoothing=0.1)
    first, second = task.model(images)
    choice = task.teacher(images).argmax(1)
    expected = 0.7 * functional.cross_entropy(first, labels, label_smoothing=0.1)
    expected = expected + 0.3 * functional.cross_entropy(second, choice)
    result = task(images, labels)
    torch.testing.assert_close(result["loss"], expected)
    torch.testing.assert_close(result["output"], (first + second) / 2)


@pytest.mark.parametrize(("soft_mean", "count"), [("elements", 30), ("images", 6)])
def test_soft_is_the_divergence_of_the_softened_probabilities(batch, soft_mean, count):
    images, labels = batch
    task = DistillationTask(TwoHeads(), teacher(), kind="soft", alpha=1.0, temperature=3.0, soft_mean=soft_mean)
    _, second = task.model(images)
    p, q = (logits.div(3).softmax(1).double() for logits in (task.teacher(images), second))
    expected = 9 * (p * (p / q).log()).sum() / count
    assert float(task(images, labels)["loss"].detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_only_the_student_learns_and_is_saved(batch):
    images, labels = batch
    task = DistillationTask(TwoHeads(), teacher())
    task(images, labels)["loss"].backward()
    assert all(head.weight.grad.abs().sum() > 0 for head in task.model.heads)
    assert all(parameter.grad is None for parameter in task.teacher.model.parameters())
    assert not [name for name, _ in task.named_parameters() if "teacher" in name]
    assert copy.deepcopy(task).teacher is task.teacher
    task.train()
    assert not task.teacher.model.training


def test_evaluation_is_plain(batch):
    images, labels = batch
    task = DistillationTask(TwoHeads(), teacher(), label_smoothing=0.1).eval()
    result = task(images, labels)
    torch.testing.assert_close(result["output"], task.model(images))
    torch.testing.assert_close(result["loss"], functional.cross_entropy(task.model(images), labels))


def test_teacher_receives_its_own_normalization():
    pixels = torch.rand(4, 3, 2, 2)
    mean, std, own_mean, own_std = (torch.tensor(v) for v in ([0.1, 0.2, 0.3], [0.5, 0.4, 0.3], [0.5] * 3, [0.25] * 3))
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    adapted = Teacher(network, own_mean.tolist(), own_std.tolist(), mean.tolist(), std.tolist())
    as_student, as_teacher = (
        (pixels - m.view(-1, 1, 1)) / s.view(-1, 1, 1) for m, s in ((mean, std), (own_mean, own_std))
    )
    torch.testing.assert_close(adapted(as_student), network(as_teacher))


@pytest.mark.parametrize(("options", "name"), [({"alpha": 1.5}, "alpha"), ({"temperature": 0.0}, "temperature")])
def test_numbers_out_of_range_are_refused(options, name):
    with pytest.raises(ValueError, match=f"{name} is"):
        DistillationTask(TwoHeads(), teacher(), **options)
