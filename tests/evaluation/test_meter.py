"""Loss and accuracy accumulated over batches."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from vitfast.errors import UserError
from vitfast.evaluation.meter import ClassificationMeter

CPU = torch.device("cpu")


def batches(count: int, classes: int = 12) -> list[tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    made = []
    for index in range(count):
        output = torch.randn(5 + index, classes, generator=generator)
        labels = torch.randint(classes, (5 + index,), generator=generator)
        made.append((functional.cross_entropy(output, labels), output, labels))
    return made


def test_figures_are_those_of_all_images_together():
    meter = ClassificationMeter(12, CPU)
    made = batches(4)
    for loss, output, labels in made:
        meter.update(loss, output, labels)
    output, labels = (torch.cat([batch[index] for batch in made]) for index in (1, 2))
    figures = meter.compute()
    assert figures["images"] == len(labels)
    assert figures["loss"] == pytest.approx(float(functional.cross_entropy(output, labels)), rel=1e-6)
    assert figures["top1"] == pytest.approx(float((output.argmax(1) == labels).float().mean()), abs=1e-6)
    top5 = (output.topk(5).indices == labels[:, None]).any(1).float().mean()
    assert figures["top5"] == pytest.approx(float(top5), abs=1e-6)


def test_top5_of_three_classes_is_everything():
    meter = ClassificationMeter(3, CPU)
    for loss, output, labels in batches(2, classes=3):
        meter.update(loss, output, labels)
    assert meter.compute()["top5"] == 1.0


def test_nothing_seen_is_nan_and_reset_forgets():
    meter = ClassificationMeter(12, CPU)
    assert all(math.isnan(meter.compute()[name]) for name in ("loss", "top1", "top5"))
    meter.update(*batches(1)[0])
    meter.reset()
    assert all(math.isnan(meter.compute()[name]) for name in ("loss", "top1", "top5"))


@pytest.mark.parametrize("seen", [0, 1, 3])
def test_a_restored_meter_goes_on_exactly(seen):
    made = batches(5)
    whole, first = ClassificationMeter(12, CPU), ClassificationMeter(12, CPU)
    for batch in made:
        whole.update(*batch)
    for batch in made[:seen]:
        first.update(*batch)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = ClassificationMeter(12, CPU)
    second.update(*made[-1])  # discarded by load_state_dict
    second.load_state_dict(torch.load(file, weights_only=True))
    for batch in made[seen:]:
        second.update(*batch)
    assert second.compute() == whole.compute()


def test_another_meters_state_is_refused():
    with pytest.raises(UserError, match="lack 'loss_sum'"):
        ClassificationMeter(12, CPU).load_state_dict({**ClassificationMeter(12, CPU).state_dict(), "loss_sum": {}})
