"""The length of a run and the learning rate of each step."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn

from vitfast.config.schema import OptimConfig, ScheduleConfig
from vitfast.errors import UserError
from vitfast.training.optimizer import create_optimizer
from vitfast.training.schedule import TrainingLength, create_schedule


def rates(config: ScheduleConfig, steps_per_epoch: int, lr: float = 0.1) -> list[float]:
    model = nn.Linear(2, 2)
    optimizer = create_optimizer(model, OptimConfig(lr=lr))
    length = TrainingLength.of(config, steps_per_epoch)
    schedule = create_schedule(optimizer, config, length)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(length.total_steps):
            found.append(optimizer.param_groups[0]["lr"])
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            schedule.step()
    return [*found, optimizer.param_groups[0]["lr"]]


def test_linear_up_then_cosine_down():
    found = rates(ScheduleConfig(epochs=5, warmup_epochs=1, min_lr=0.01), steps_per_epoch=4)
    warmup = [0.1 * (step + 1) / 5 for step in range(4)]
    cosine = [0.01 + 0.09 * (1 + math.cos(math.pi * step / 16)) / 2 for step in range(17)]
    assert found == pytest.approx([*warmup, *cosine])
    assert max(found) == pytest.approx(0.1)
    assert found[-1] == pytest.approx(0.01)


def test_a_warm_up_over_the_start_of_the_cosine():
    config = ScheduleConfig(epochs=5, warmup_epochs=1, warmup_lr=0.02, warmup_over_decay=True, min_lr=0.01)
    found = rates(config, steps_per_epoch=4)
    cosine = [0.01 + 0.09 * (1 + math.cos(math.pi * step / 20)) / 2 for step in range(21)]
    assert found == pytest.approx([0.02, 0.04, 0.06, 0.08, *cosine[4:]])


def test_a_warm_up_from_above_its_end_is_refused():
    with pytest.raises(UserError, match=r"schedule.warmup_lr=0.2 is above 0.1"):
        rates(ScheduleConfig(epochs=2, warmup_epochs=1, warmup_lr=0.2), steps_per_epoch=4)


def test_linear_down():
    found = rates(ScheduleConfig(name="linear", epochs=3, warmup_epochs=1, min_lr=0.02), steps_per_epoch=4)
    assert found[3:] == pytest.approx([0.08, *(0.1 - 0.01 * step for step in range(9))])


def test_steps_down_are_counted_from_the_end_of_the_warm_up():
    config = ScheduleConfig(name="step", epochs=3, warmup_epochs=0.5, step_epochs=1, step_factor=0.1, min_lr=0.9)
    found = rates(config, steps_per_epoch=2)
    assert found == pytest.approx([0.05, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_steps_down_happen_at_most_once_a_step():
    config = ScheduleConfig(name="step", epochs=2, warmup_epochs=0, step_epochs=0.1, step_factor=0.5)
    assert rates(config, steps_per_epoch=2) == pytest.approx([0.1, 0.05, 0.025, 0.0125, 0.00625])


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_the_end_may_be_the_peak(name):
    assert rates(ScheduleConfig(name=name, epochs=2, warmup_epochs=0, min_lr=0.1), 2) == pytest.approx([0.1] * 5)


def test_constant():
    found = rates(ScheduleConfig(name="constant", epochs=2, warmup_epochs=1), steps_per_epoch=2)
    assert found == pytest.approx([0.1 / 3, 0.2 / 3, 0.1, 0.1, 0.1])
    assert rates(ScheduleConfig(name="constant", epochs=2, warmup_epochs=0), steps_per_epoch=2) == [0.1] * 5


def test_every_group_keeps_its_share():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD([{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.05}])
    config = ScheduleConfig(name="linear", epochs=2, warmup_epochs=1, min_lr=0.01)
    schedule = create_schedule(optimizer, config, TrainingLength.of(config, 3))
    for _ in range(6):
        high, low = (group["lr"] for group in optimizer.param_groups)
        assert low == pytest.approx(high / 2)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_a_lowest_layer_below_the_end_is_refused(name):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD([{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.001}])
    config = ScheduleConfig(name=name, epochs=2, warmup_epochs=0, min_lr=0.01)
    with pytest.raises(
        UserError, match=r"schedule.min_lr=0.01 is above 0.001, which is the lowest .* optim.layer_decay"
    ):
        create_schedule(optimizer, config, TrainingLength.of(config, 3))


def test_no_warm_up_starts_at_the_peak():
    found = rates(ScheduleConfig(epochs=2, warmup_epochs=0, min_lr=0.0), steps_per_epoch=3)
    assert found[0] == 0.1
    assert found == sorted(found, reverse=True)


def test_the_warm_up_may_be_part_of_an_epoch():
    found = rates(ScheduleConfig(epochs=2, warmup_epochs=0.5, min_lr=0.0), steps_per_epoch=4)
    cosine = [0.1 * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(7)]
    assert found == pytest.approx([0.1 / 3, 0.2 / 3, *cosine])


def test_steps_instead_of_epochs():
    """ViT-pytorch's fine-tuning: 10,000 steps, of which 500 warm up, whatever the epochs are."""
    config = ScheduleConfig(epochs=99, steps=7, warmup_epochs=9, warmup_steps=2, min_lr=0.0)
    found = rates(config, steps_per_epoch=3)
    cosine = [0.1 * (1 + math.cos(math.pi * step / 5)) / 2 for step in range(6)]
    assert found == pytest.approx([0.1 / 3, 0.2 / 3, *cosine])


def test_epochs():
    length = TrainingLength.of(ScheduleConfig(epochs=3, warmup_epochs=0.5), 10)
    assert (length.total_steps, length.warmup_steps, length.epochs) == (30, 5, 3)
    assert [length.steps_in(epoch) for epoch in range(3)] == [10, 10, 10]
    assert length.describe() == "30 steps: 3 epochs of 10 steps"


def test_steps_cut_the_last_epoch_short():
    length = TrainingLength.of(ScheduleConfig(epochs=3, steps=24, warmup_steps=2), 10)
    assert (length.total_steps, length.warmup_steps, length.epochs) == (24, 2, 3)
    assert [length.steps_in(epoch) for epoch in range(3)] == [10, 10, 4]
    assert length.describe() == "24 steps: 3 epochs of 10 steps, the last of 4"
    length = TrainingLength.of(ScheduleConfig(steps=17, warmup_steps=2), 10)
    assert length.describe() == "17 steps: 2 epochs of 10 steps, the last of 7"


def test_fewer_steps_than_an_epoch_has():
    length = TrainingLength.of(ScheduleConfig(steps=2, warmup_epochs=0), 10)
    assert (length.epochs, length.steps_in(0)) == (1, 2)


@pytest.mark.parametrize(
    ("options", "given", "warmup"),
    [
        ({"epochs": 3}, "schedule.warmup_epochs=5 is not shorter than schedule.epochs=3", 3),
        ({"epochs": 2, "warmup_epochs": 2}, "schedule.warmup_epochs=2 is not shorter than schedule.epochs=2", 2),
        ({"steps": 5, "warmup_steps": 5}, "schedule.warmup_steps=5 is not shorter than schedule.steps=5", 0),
        ({"steps": 25}, "schedule.warmup_epochs=5 is not shorter than schedule.steps=25", 2),
    ],
)
def test_a_warm_up_as_long_as_the_run_is_shortened(options, given, warmup):
    length = TrainingLength.of(ScheduleConfig(**options), 10)
    assert length.warmup_steps == warmup
    assert length.note == f"{given}: the warm-up is shortened to {warmup} steps, a tenth of that"


def test_a_shorter_warm_up_stays():
    assert TrainingLength.of(ScheduleConfig(epochs=6), 10) == TrainingLength(10, 60, 50)
