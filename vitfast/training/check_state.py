"""Checks a saved training state before any of it is used.

``state.pt`` is not trusted: torch's optimizers and schedules take what they are given, and the fused kernels read and
write moments as if these had the parameters' shapes. Only what training changes is taken from the file; everything else
comes from the options of the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vitfast.evaluation.knn import KNN_PROTOCOLS
from vitfast.training.schedule import TrainingLength
from vitfast.weights.manifest import CheckpointError, is_count, is_number

_NON_NEGATIVE = ("exp_avg_sq",)
_SPLITS = {"train", "val", "test"}
_ROUNDING = 1.001  # of a learning rate that is computed step by step
_METRICS = ({"loss", "images_per_s"}, {"knn", "images_per_s"})  # at least one of these sets


def require(holds: bool, name: str, rule: str) -> None:
    """Raises CheckpointError, which names an entry of the state and its rule, unless the rule holds."""
    if not holds:
        raise CheckpointError(
            f'state.pt does not fit this run: "{name}" must be {rule}; resume from another checkpoint, or start a new '
            "run"
        )


def check_counters(state: Mapping[str, Any], length: TrainingLength) -> None:
    """Checks the counters of a training state against the length of the run."""
    limits = {"epoch": length.epochs, "step": length.total_steps, "step_in_epoch": length.steps_per_epoch}
    limits["total_steps"] = length.total_steps
    for name, limit in limits.items():
        require(is_count(state[name]) and state[name] <= limit, name, f"a whole number from 0 to {limit}")
    require(is_count(state["skipped_in_a_row"]), "skipped_in_a_row", "a whole number from 0")
    require(is_number(state["seconds_in_epoch"]) and state["seconds_in_epoch"] >= 0, "seconds_in_epoch", "at least 0")
    top1, step = state["best_top1"], state["best_step"]
    require((top1 is None) == (step is None), "best_step", "null if best_top1 is null")
    require(top1 is None or (is_number(top1) and 0 <= top1 <= 1), "best_top1", "null or a share from 0 to 1")
    require(step is None or (is_count(step) and step <= state["step"]), "best_step", "null or a completed step")
    metrics = state["metrics"]
    require(
        isinstance(metrics, dict) and metrics.keys() <= _SPLITS and all(map(_are_metrics, metrics.values())),
        "metrics",
        "loss, top1, top5, images_per_s, or knn and images_per_s, by split",
    )
    rows = state["metric_rows"]
    require(isinstance(rows, list) and all(map(_is_row, rows)), "metric_rows", "the rows of metrics.jsonl")


def checked_optimizer(saved: Any, optimizer: torch.optim.Optimizer, steps: int) -> dict[str, Any]:
    """Returns the state dict of an optimizer with the moments and learning rates of a saved one.

    Args:
        saved: of ``Optimizer.state_dict``, with full tensors.
        optimizer: of the run.
        steps: completed steps.
    """
    groups = optimizer.state_dict()["param_groups"]
    require(isinstance(saved, dict) and isinstance(saved.get("state"), dict), "optimizer.state", "a mapping")
    given = saved.get("param_groups")
    require(isinstance(given, list) and len(given) == len(groups), "optimizer.param_groups", f"{len(groups)} groups")
    rates = [
        _learning_rate(one, group, f"optimizer.param_groups.{n}")
        for n, (one, group) in enumerate(zip(given, groups, strict=True))
    ]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = {"momentum_buffer"} if isinstance(optimizer, torch.optim.SGD) else {"step", "exp_avg", "exp_avg_sq"}
    entries = {}
    for index, entry in saved["state"].items():
        where = f"optimizer.state.{index}"
        require(is_count(index) and index < len(parameters), where, f"below {len(parameters)}, the parameters")
        require(isinstance(entry, dict) and entry.keys() == names, where, f"a mapping of {', '.join(sorted(names))}")
        entries[index] = {
            name: _step(value, steps, f"{where}.{name}")
            if name == "step"
            else _moment(value, parameters[index], f"{where}.{name}", non_negative=name in _NON_NEGATIVE)
            for name, value in entry.items()
        }
    return {
        "state": entries,
        "param_groups": [{**group, "lr": rate} for group, rate in zip(groups, rates, strict=True)],
    }


def checked_schedule(saved: Any, fresh: dict[str, Any], steps: int, name: str = "schedule") -> dict[str, Any]:
    """Returns the state of a new schedule, with the counts and learning rates of a saved one.

    Args:
        saved: of ``LRScheduler.state_dict``.
        fresh: that of the new schedule.
        steps: completed steps.
        name: in messages.
    """
    require(isinstance(saved, dict), name, "a mapping")
    result = dict(fresh)
    for count, low, high in (("last_epoch", -1, steps), ("_step_count", 0, steps + 2)):
        if count in fresh:
            value = saved.get(count)
            in_range = type(value) is int and low <= value <= high
            require(in_range, f"{name}.{count}", f"a whole number from {low} to {high}")
            result[count] = value
    if "_last_lr" in fresh:
        rates, groups = saved.get("_last_lr"), len(fresh["_last_lr"])
        are_rates = isinstance(rates, list) and len(rates) == groups and all(is_number(r) and r >= 0 for r in rates)
        require(are_rates, f"{name}._last_lr", f"{groups} learning rates")
        result["_last_lr"] = rates
    if "_schedulers" in fresh:
        parts, number = saved.get("_schedulers"), len(fresh["_schedulers"])
        require(isinstance(parts, list) and len(parts) == number, f"{name}._schedulers", f"{number} schedules")
        pairs = enumerate(zip(parts, fresh["_schedulers"], strict=True))
        result["_schedulers"] = [
            checked_schedule(one, new, steps, f"{name}._schedulers.{n}") for n, (one, new) in pairs
        ]
    return result


def checked_scaler(saved: Any, fresh: dict[str, Any]) -> dict[str, Any]:
    """Returns the state of a new gradient scaler with the scale of a saved one; {} if scaling is off."""
    if not fresh:
        return {}
    require(isinstance(saved, dict), "scaler", "a mapping")
    scale, steps = saved.get("scale"), saved.get("_growth_tracker")
    require(is_number(scale) and scale > 0, "scaler.scale", "a number above 0")
    require(is_count(steps), "scaler._growth_tracker", "a whole number from 0")
    return {**fresh, "scale": scale, "_growth_tracker": steps}


def checked_updates(saved: Any, steps: int) -> Tensor:
    """Returns the number of updates of the averaged weights."""
    require(
        isinstance(saved, Tensor) and saved.dtype == torch.int64 and saved.numel() == 1 and 0 <= int(saved) <= steps,
        "ema_updates",
        f"a whole number from 0 to {steps}, or null without an average",
    )
    updates: Tensor = saved
    return updates.reshape(())


def check_meters(saved: Any, fresh: dict[str, Any]) -> None:
    """Checks the running metrics of all ranks against those of a new meter."""
    are_ranks = isinstance(saved, list) and len(saved) > 0 and all(isinstance(one, dict) for one in saved)
    require(are_ranks, "ranks", "a list with an entry for each rank")
    for rank, one in enumerate(saved):
        meter, name = one.get("meter"), f"ranks.{rank}.meter"
        require(isinstance(meter, dict) and meter.keys() == fresh.keys(), name, "the metrics of this version")
        for metric, values in fresh.items():
            entry = meter[metric]
            fits = isinstance(entry, dict) and entry.keys() == values.keys()
            fits = fits and all(_is_like(entry[key], value) for key, value in values.items())
            require(fits, f"{name}.{metric}", "finite numbers from 0, of the same shape as those of this version")


def check_task(saved: Any, fresh: dict[str, Tensor], name: str, *, any_length: bool = False) -> None:
    """Checks named tensors of a task against those of a new one; with ``any_length``, the second size may differ."""
    require(isinstance(saved, dict) and saved.keys() == fresh.keys(), name, f"named {', '.join(fresh) or 'nothing'}")
    for key, tensor in fresh.items():
        value, shape = saved[key], list(tensor.shape)
        fits = isinstance(value, Tensor) and value.dtype == tensor.dtype and value.dim() == tensor.dim()
        fits = fits and all(
            one == other or (any_length and axis == 1)
            for axis, (one, other) in enumerate(zip(value.shape, shape, strict=True))
        )
        require(fits and bool(value.isfinite().all()), f"{name}.{key}", f"finite, of shape {shape} and {tensor.dtype}")


def check_weights(state: Any, module: nn.Module, name: str) -> None:
    """Checks that a state dict of ``module`` has finite parameters, and buffers without NaN."""
    are_tensors = isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values())
    require(are_tensors and all(isinstance(key, str) for key in state), name, "named tensors")
    if bad := first_non_finite(state, {key for key, _ in module.named_parameters()}):
        raise CheckpointError(f"{name}: {bad} has values that are not finite; resume from another checkpoint")


def first_non_finite(state: Mapping[str, Tensor], parameters: set[str]) -> str | None:
    """Returns the first parameter that is not finite, or other tensor that has NaN; a mask may be infinite."""
    for key, tensor in state.items():
        if tensor.is_floating_point() and not (tensor.isfinite() if key in parameters else ~tensor.isnan()).all():
            return key
    return None


def _are_metrics(values: Any) -> bool:
    if not isinstance(values, dict) or not any(values.keys() >= names for names in _METRICS):
        return False
    by_protocol = values.get("knn", dict.fromkeys(KNN_PROTOCOLS, 0.0))
    if not isinstance(by_protocol, dict) or by_protocol.keys() != KNN_PROTOCOLS.keys():
        return False
    exits = values.get("exits", [])
    if not isinstance(exits, list):
        return False
    numbers = [value for name, value in values.items() if name not in ("knn", "exits")]
    numbers += [*exits, *by_protocol.values()]
    return all(type(number) is float or is_number(number) for number in numbers)  # a loss may be infinite


def _is_row(row: Any) -> bool:
    if not isinstance(row, dict) or row.get("split") not in _SPLITS:
        return False
    numbers = {key: value for key, value in row.items() if key != "split"}
    counts = (numbers.get("epoch"), numbers.get("step"))
    return _are_metrics(numbers) and all(map(is_count, counts)) and all(type(key) is str for key in numbers)


def _learning_rate(saved: Any, group: dict[str, Any], name: str) -> float:
    require(isinstance(saved, dict) and saved.get("params") == group["params"], f"{name}.params", "those of the run")
    rate, peak = saved.get("lr"), group["initial_lr"]
    require(is_number(rate) and 0 <= rate <= peak * _ROUNDING, f"{name}.lr", f"a number from 0 to {peak:g}")
    return float(rate)


def _step(value: Any, steps: int, name: str) -> Tensor:
    is_scalar = isinstance(value, Tensor) and value.ndim == 0 and value.is_floating_point()
    in_range = is_scalar and float(value).is_integer() and 0 <= float(value) <= steps
    require(in_range, name, f"a whole number from 0 to {steps}")
    copy: Tensor = value.clone()
    return copy


def _moment(value: Any, parameter: Tensor, name: str, *, non_negative: bool) -> Tensor:
    """Returns a copy with the parameter's strides, which the fused optimizers assume."""
    shape, dtype = list(parameter.shape), parameter.dtype
    fits = isinstance(value, Tensor) and list(value.shape) == shape and value.dtype == dtype
    require(fits, name, f"a tensor of shape {shape} and {dtype}")
    rule = "finite and at least 0" if non_negative else "finite"
    require(bool(value.isfinite().all()) and not (non_negative and bool((value < 0).any())), name, rule)
    return torch.empty_strided(parameter.shape, parameter.stride(), dtype=dtype).copy_(value)


def _is_like(value: Any, fresh: Tensor) -> bool:
    fits = isinstance(value, Tensor) and value.shape == fresh.shape and value.dtype == fresh.dtype
    return fits and bool((value.isfinite() & (value >= 0)).all())
