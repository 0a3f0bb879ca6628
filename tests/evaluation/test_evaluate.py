"""``evaluate``: one pass over a split."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from vitfast.evaluation.evaluate import evaluate
from vitfast.tasks import ClassificationTask

CPU = torch.device("cpu")


@pytest.fixture
def images() -> Tensor:
    return torch.randn(23, 3, 2, 2)


@pytest.fixture
def labels() -> Tensor:
    return torch.randint(6, (23,))


@pytest.fixture
def task() -> ClassificationTask:
    return ClassificationTask(nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(12, 6)), label_smoothing=0.5)


def run(task, images, labels, **options):
    loader = DataLoader(TensorDataset(images, labels), batch_size=5)
    return evaluate(task, loader, num_classes=6, device=CPU, **options)


def test_every_image_counts_once_also_in_the_smaller_last_batch(task, images, labels):
    evaluation = run(task, images, labels)
    logits = task.eval().model(images)
    assert evaluation.images == 23
    assert evaluation.loss == pytest.approx(functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert evaluation.top1 == pytest.approx((logits.argmax(1) == labels).float().mean().item(), abs=1e-6)
    assert evaluation.images_per_s > 0
    assert set(evaluation.metrics()) == {"loss", "top1", "top5", "images_per_s"}


def test_empty_batches_count_nothing(task, images, labels):
    pieces = [0, 5, 0, 18, 0]
    batches = list(zip(images.split(pieces), labels.split(pieces), strict=True))
    found = evaluate(task, batches, num_classes=6, device=CPU)
    expected = run(task, images, labels)
    assert (found.images, found.top1) == (23, expected.top1)
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)


def test_the_mode_comes_back_and_nothing_learns(task, images, labels):
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    run(task.train(), images, labels)
    assert task.training
    run(task.eval(), images, labels)
    assert not task.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.state_dict().items())


def test_details_count_confusions(task, images, labels):
    evaluation = run(task, images, labels, detailed=True)
    predictions = task.eval().model(images).argmax(1)
    expected = torch.zeros(6, 6, dtype=torch.int64)
    for label, prediction in zip(labels.tolist(), predictions.tolist(), strict=True):
        expected[label, prediction] += 1
    assert torch.equal(evaluation.confusion, expected)


def test_the_calibration_error_is_the_gap_of_confidence_and_accuracy():
    # confidence is always 3/4, accuracy 1/2
    logits = torch.tensor([[3.0, 1.0]]).log().repeat(8, 1)
    labels = torch.tensor([0, 1] * 4)
    loader = DataLoader(TensorDataset(logits, labels), batch_size=3)
    evaluation = evaluate(ClassificationTask(nn.Identity()), loader, num_classes=2, device=CPU, detailed=True)
    assert evaluation.calibration_error == pytest.approx(0.25, abs=1e-6)


def test_a_pass_can_be_given_up(task, images, labels):
    asked = []

    def stop() -> bool:
        asked.append(True)
        return len(asked) == 3

    assert run(task.train(), images, labels, should_stop=stop) is None
    assert len(asked) == 3
    assert task.training


def test_bf16_computes_in_bf16(task, images, labels):
    types = []
    task.model[2].register_forward_hook(lambda module, inputs, output: types.append(output.dtype))
    run(task, images, labels, precision="bf16")
    assert set(types) == {torch.bfloat16}
