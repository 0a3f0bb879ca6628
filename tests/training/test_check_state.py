"""A training state of a wrong type, shape or range is refused by name before any of it is used."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from support.small_training import make_step, new_state
from vitfast.errors import UserError
from vitfast.training.training_state import TrainingState
from vitfast.weights.manifest import CheckpointError

NAN = float("nan")
ROW = {"split": "val", "epoch": 1, "step": 2, "lr": 0.1, "loss": NAN, "top1": 0.5, "top5": 1.0, "images_per_s": 9.0}


@pytest.fixture(scope="module", params=["adamw", "sgd"])
def trained(request: pytest.FixtureRequest) -> tuple[TrainingState, tuple[Any, ...]]:
    state = new_state(f"optim.name={request.param}")
    for _ in range(2):
        make_step(state)
    return state, copy.deepcopy((state.state_dict(), state.model_state(), state.ema_state()))


def load(name: str, saved: tuple[Any, ...], **changes: Any) -> TrainingState:
    state, model, ema = copy.deepcopy(saved)
    for path, value in changes.items():
        *parents, last = path.split("__")
        entry: Any = state
        for parent in parents:
            entry = entry[int(parent) if parent.isdecimal() else parent]
        key = int(last) if last.isdecimal() else last
        entry[key] = value(entry[key]) if callable(value) else value
    fresh = new_state(f"optim.name={name}")
    fresh.load_state_dict(state, model, ema)
    return fresh


def optimizer_name(state: TrainingState) -> str:
    return type(state.optimizer).__name__.lower()


def test_the_next_step_is_the_same_bit_for_bit(trained: Any) -> None:
    state, saved = trained
    resumed = load(optimizer_name(state), saved)
    continued = load(optimizer_name(state), saved)
    for one in (resumed, continued):
        torch.manual_seed(1)
        make_step(one)
    first, second = resumed.state_dict(), continued.state_dict()
    assert first["schedule"] == second["schedule"]
    for key, entry in first["optimizer"]["state"].items():
        assert all(torch.equal(value, second["optimizer"]["state"][key][name]) for name, value in entry.items())
    assert all(torch.equal(value, continued.model_state()[key]) for key, value in resumed.model_state().items())


@pytest.mark.parametrize("trained", ["adamw"], indirect=True)
@pytest.mark.parametrize("warmup", ["schedule.warmup_epochs=0", "schedule.warmup_epochs=3"])
def test_a_longer_run_takes_over_with_its_own_schedule(trained: Any, warmup: str) -> None:
    options = ("optim.name=adamw", "schedule.epochs=9", warmup)
    undisturbed, extended = new_state(*options), new_state(*options)
    for _ in range(2):
        make_step(undisturbed)
    extended.load_state_dict(*copy.deepcopy(trained[1]))
    for _ in range(25):
        assert extended.learning_rate == undisturbed.learning_rate
        for state in (undisturbed, extended):
            make_step(state)


@pytest.mark.parametrize(
    "change",
    [
        *(lambda value, count=count: torch.zeros(count) for count in (0, 1, 3)),
        lambda value: value.double(),
        lambda value: value.flatten()[:0],
        lambda value: torch.full_like(value, NAN),
        lambda value: torch.full_like(value, float("inf")),
        lambda value: None,
        lambda value: value.tolist(),
    ],
    ids=["empty", "1", "3", "double", "flat", "nan", "inf", "none", "list"],
)
def test_moments_that_do_not_fit(trained: Any, change: Any) -> None:
    state, saved = trained
    moment = "momentum_buffer" if optimizer_name(state) == "sgd" else "exp_avg"
    with pytest.raises(CheckpointError, match=rf'state\.pt does not fit this run: "optimizer\.state\.1\.{moment}"'):
        load(optimizer_name(state), saved, **{f"optimizer__state__1__{moment}": change})


@pytest.mark.parametrize("trained", ["adamw"], indirect=True)
@pytest.mark.parametrize(
    ("path", "value", "name"),
    [
        ("optimizer__state__0__exp_avg_sq", lambda value: value - 100, "optimizer.state.0.exp_avg_sq"),
        ("optimizer__state__0__step", torch.tensor(-1.0), "optimizer.state.0.step"),
        ("optimizer__state__0__step", torch.tensor(NAN), "optimizer.state.0.step"),
        ("optimizer__state__0__more", 1, "optimizer.state.0"),
        ("optimizer__state__900", {}, "optimizer.state.900"),
        ("optimizer__state", [], "optimizer.state"),
        ("optimizer__param_groups", [], "optimizer.param_groups"),
        ("optimizer__param_groups__0__lr", NAN, "optimizer.param_groups.0.lr"),
        ("optimizer__param_groups__0__lr", 5.0, "optimizer.param_groups.0.lr"),
        ("optimizer__param_groups__0__lr", torch.ones(3), "optimizer.param_groups.0.lr"),
        ("optimizer__param_groups__0__params", [0, 0], "optimizer.param_groups.0.params"),
        ("schedule__last_epoch", 1, "schedule.last_epoch"),
        ("schedule__last_epoch", "2", "schedule.last_epoch"),
        ("schedule___last_lr", [NAN, NAN], "schedule._last_lr"),
        ("schedule___schedulers__1__last_epoch", 1 << 62, "schedule._schedulers.1.last_epoch"),
        ("schedule", None, "schedule"),
        ("total_steps", 7, "total_steps"),
        ("epoch", -1, "epoch"),
        ("epoch", 3, "epoch"),
        ("epoch", True, "epoch"),
        ("step", 1.0, "step"),
        ("step_in_epoch", 4, "step_in_epoch"),
        ("seconds_in_epoch", NAN, "seconds_in_epoch"),
        ("metric_rows", None, "metric_rows"),
        ("metric_rows", [{"split": "train", "epoch": 1, "step": 2}], "metric_rows"),
        ("metric_rows", [{**ROW, "split": "other"}], "metric_rows"),
        ("metric_rows", [{**ROW, "step": -1}], "metric_rows"),
        ("metric_rows", [{**ROW, 3: 4}], "metric_rows"),
        ("metric_rows", [{**ROW, "lr": 10**5000}], "metric_rows"),
        ("best_top1", 0.5, "best_step"),
        ("metrics", {"train": {"top1": "high"}}, "metrics"),
        ("ema_updates", torch.zeros(2, dtype=torch.int64), "ema_updates"),
        ("ema_updates", torch.tensor(-1), "ema_updates"),
        ("ranks", [], "ranks"),
        ("ranks__0__meter__images", {}, "ranks.0.meter.images"),
        ("ranks__0__meter__images__sum_value", torch.zeros(9), "ranks.0.meter.images"),
    ],
)
def test_values_out_of_range(trained: Any, path: str, value: Any, name: str) -> None:
    with pytest.raises(CheckpointError) as info:
        load("adamw", trained[1], **{path: value})
    assert f'state.pt does not fit this run: "{name}" must be' in str(info.value)


def test_options_are_those_of_the_run(trained: Any) -> None:
    """Only what training changes is taken from a file."""
    state, saved = trained
    changes = {"weight_decay": 99.0, "maximize": True, "fused": "no", "capturable": True, "foreach": True}
    loaded = load(optimizer_name(state), saved, optimizer__param_groups__0=lambda group: {**group, **changes})
    assert loaded.optimizer.state_dict()["param_groups"] == state.optimizer.state_dict()["param_groups"]
    loaded = load(optimizer_name(state), saved, schedule=lambda values: {**values, "step": 3, "_milestones": []})
    assert loaded.schedule.state_dict() == state.schedule.state_dict()


def test_the_position_of_numpys_generator(trained: Any) -> None:
    """NumPy reads the number at the position that it is given."""
    state, saved = trained

    def beyond(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return (*values[:2], 1 << 20, *values[3:])

    with pytest.raises(UserError, match="random generators cannot be restored"):
        load(optimizer_name(state), saved, ranks__0__random__numpy=beyond)


@pytest.mark.parametrize("which", [1, 2], ids=["model", "ema"])
def test_weights_that_are_not_finite(trained: Any, which: int) -> None:
    state, saved = trained
    parts = list(copy.deepcopy(saved))
    weight: Tensor = parts[which]["head.weight"]
    weight[0, 0] = NAN
    with pytest.raises(CheckpointError, match=r"safetensors: head\.weight has values that are not finite"):
        load(optimizer_name(state), tuple(parts))


def test_nan_is_not_saved(tmp_path: Any, train_tiny: Any) -> None:
    """The loss of the only step is finite, the weights after it are not."""
    options = ("optim.name=sgd", "optim.lr=1e300", "schedule.steps=1", "schedule.warmup_epochs=0")
    with pytest.raises(UserError, match=r"could not be saved: .* is not finite; try a lower optim\.lr"):
        train_tiny(tmp_path / "run", *options, "data.val_share=0.1")
    assert not list((tmp_path / "run").glob("checkpoint_*"))
