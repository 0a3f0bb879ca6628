"""How long a run is."""

from __future__ import annotations

import pytest

from vitfast.config.schema import ScheduleConfig
from vitfast.errors import UserError
from vitfast.training.training_length import TrainingLength


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


def test_fewer_steps_than_an_epoch_has():
    length = TrainingLength.of(ScheduleConfig(steps=2, warmup_epochs=0), 10)
    assert (length.epochs, length.steps_in(0)) == (1, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"epochs": 2, "warmup_epochs": 2},
            "schedule.warmup_epochs=2 leaves nothing of schedule.epochs=2",
        ),
        ({"steps": 5, "warmup_steps": 5}, "schedule.warmup_steps=5 leaves nothing of schedule.steps=5"),
        ({"steps": 5}, "schedule.warmup_epochs=5 leaves nothing of schedule.steps=5"),
    ],
)
def test_a_warm_up_as_long_as_the_run_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        TrainingLength.of(ScheduleConfig(**options), 3)
