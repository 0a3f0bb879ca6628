"""The options that a resumed run must keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitfast.config.option import option_values
from vitfast.config.schema import Config

# options that a resumed run may change: they affect where it runs and what it keeps, not the result
MAY_CHANGE = (
    "data.root",
    "data.workers",
    "data.on_corrupt",
    "data.allow_changes",
    "train.device",
    "train.compile",
    "train.threads",
    "train.recompute",
    "train.shard",
    "train.timeout_s",
    "ops.kernels",
    "train.log_every",
    "train.checkpoint_every_epochs",
    "train.checkpoint_every_steps",
    "track.tensorboard",
    "track.wandb",
    "track.project",
    "train.keep_checkpoints",
)
# options that may become larger, which extends the run
MAY_GROW = ("schedule.epochs", "schedule.steps")
_IGNORED = ("recipe", "run_dir", "train.resume")


def fixed_options(config: Config) -> dict[str, Any]:
    """Returns the options that determine the result of a run: dotted key -> value."""
    return {key: value for key, value in option_values(config).items() if key not in (*MAY_CHANGE, *_IGNORED)}


def changed_options(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Names the options that differ, except for those of ``MAY_GROW`` that are larger."""
    larger = {key for key in MAY_GROW if type(before.get(key)) is int and (after[key] or 0) > before[key]}
    return [key for key in after if after[key] != before.get(key) and key not in larger]
