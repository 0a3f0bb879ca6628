"""A whole training run, from its options to the table at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch

from vitfast.config import load_config, to_yaml
from vitfast.config.schema import Config
from vitfast.engine.checkpoint import resolve_checkpoint
from vitfast.engine.device import describe_device, select_device
from vitfast.engine.environment import describe_environment
from vitfast.engine.random_state import seed_everything
from vitfast.engine.run_directory import CONFIG, RunDirectory
from vitfast.engine.stop_signal import StopSignal
from vitfast.engine.trainer import Trainer
from vitfast.engine.training_data import TrainingData
from vitfast.engine.training_model import create_training_model
from vitfast.engine.training_report import next_commands, result_table, resume_command, save_samples
from vitfast.engine.training_state import TrainingState
from vitfast.errors import UserError
from vitfast.tasks import ClassificationTask

# What may differ when a run goes on: where it runs and what it keeps, not what it learns.
_MAY_CHANGE = (
    "data.root",
    "data.workers",
    "data.on_corrupt",
    "train.device",
    "train.compile",
    "train.threads",
    "train.log_every",
    "train.checkpoint_every_epochs",
    "train.keep_checkpoints",
)
_IGNORED = ("recipe", "run_dir", "train.resume")


def run_training(arguments: Sequence[str], *, show_progress: bool | None = None) -> int:
    """Trains as the command line says.

    Args:
        arguments: ``key=value`` options, see ``vitfast.config.load_config``.
        show_progress: False: no bar; None: if stderr is a terminal.

    Returns:
        The exit code: 0, or 143 / 130 after SIGTERM / SIGINT.

    Raises:
        UserError: for everything that the user can mend.
    """
    resume = _given(arguments, "train.resume")
    if resume is None:
        checkpoint, config = None, load_config(list(arguments))
    else:
        checkpoint = resolve_checkpoint(resume)
        config = resumed_config(checkpoint.parent, arguments)
    with StopSignal() as stop:
        if config.train.threads is not None:
            torch.set_num_threads(config.train.threads)
        device = select_device(config.train.device)
        seed_everything(config.seed)
        # All that can refuse the options comes before the folder is made.
        data = TrainingData(config)
        model = create_training_model(config.model, data.train)
        task = ClassificationTask(model, config.optim.label_smoothing).to(device)
        state = TrainingState(task, config, data.steps_per_epoch, len(data.train.class_names), device)
        if checkpoint is None:
            run = RunDirectory.create(config.run_dir, config.recipe)
        else:
            run = RunDirectory.reopen(checkpoint.parent)
        with closing(run):
            config.run_dir = str(run.path)
            trainer = Trainer(config, state, data, run, device, show_progress)
            if checkpoint is not None:
                trainer.resume(checkpoint)
            _write_beginning(config, run, device)
            _log_beginning(trainer, checkpoint)
            return _train_and_report(trainer, stop)


def _train_and_report(trainer: Trainer, stop: StopSignal) -> int:
    run, start = trainer.run, time.monotonic()
    try:
        metrics = trainer.fit(stop)
    except UserError as error:
        run.log(f"error: {error}", show=False)
        raise
    if metrics is None:
        run.log(
            f"stopped by {stop.name} after step {trainer.state.step}; everything is saved. Continue with:\n"
            f"  {resume_command(run.path)}"
        )
        return stop.exit_code
    ema = trainer.config.optim.ema_decay
    weights = f"averaged weights (EMA, decay {ema:g})" if ema is not None else "the weights of the last step"
    try:
        sample = save_samples(trainer.data.test or trainer.data.val or trainer.data.train, run.path)
    except OSError as error:
        run.log(f"warning: no sample images could be written: {error}")
        sample = None
    text = "\n\n".join(
        [
            result_table(metrics, trainer.state, weights, seconds=time.monotonic() - start),
            next_commands(trainer.config, run.path, sample),
        ]
    )
    run.log(text, show=False)
    print(f"\n{text}", file=sys.stdout, flush=True)
    return 0


def resumed_config(run_dir: Path, arguments: Sequence[str]) -> Config:
    """Returns the options of a run that goes on: its own, plus the few that may change.

    Args:
        run_dir: folder of the run, with its ``config.yaml``.
        arguments: of the command line; repeating the original ones does no harm.

    Raises:
        UserError: if an option differs that decides what is learned.
    """
    file = run_dir / CONFIG
    if not file.is_file():
        raise UserError(f"{file} is missing: the run cannot be continued without its options")
    saved = load_config([f"recipe={file}"])
    overrides = [argument for argument in arguments if not argument.startswith("recipe=")]
    config = load_config([f"recipe={file}", *overrides])
    was, now = _flatten(saved), _flatten(config)
    changed = [key for key in now if now[key] != was.get(key) and key not in (*_MAY_CHANGE, *_IGNORED)]
    if changed:
        listed = ", ".join(f"{key}={now[key]} (the run: {was.get(key)})" for key in changed)
        raise UserError(
            f"a resumed run stays what it was; these options cannot change: {listed}. Leave them out, or start a new "
            f"run. What may change: {', '.join(_MAY_CHANGE)}"
        )
    folder = _given(arguments, "run_dir")
    if folder is not None and Path(folder).resolve() != run_dir.resolve():
        raise UserError(
            f"run_dir={folder} is not {run_dir}, which train.resume means; a run is continued in its own folder: "
            "leave run_dir out"
        )
    recipe = _given(arguments, "recipe")
    if recipe not in (None, saved.recipe, str(file)):
        raise UserError(f"the run {run_dir} has recipe={saved.recipe}, not {recipe}; leave recipe out to continue it")
    config.train.resume = None
    return config


def _given(arguments: Sequence[str], key: str) -> str | None:
    """What the command line says about an option itself, before any recipe; null is nothing."""
    values = [value for name, _, value in (argument.partition("=") for argument in arguments) if name == key]
    return values[-1] if values and values[-1] not in ("", "null") else None


def _flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            flat |= _flatten(value, f"{prefix}{field.name}.")
        else:
            flat[prefix + field.name] = value
    return flat


def _write_beginning(config: Config, run: RunDirectory, device: torch.device) -> None:
    try:
        run.write_text(CONFIG, to_yaml(config))
        run.write_environment(describe_environment(device))
    except OSError as error:
        raise UserError(f"run_dir={run.path} cannot be written: {error.strerror or error}") from error


def _log_beginning(trainer: Trainer, checkpoint: Path | None) -> None:
    config, model, run = trainer.config, trainer.task.model, trainer.run
    parameters = sum(parameter.numel() for parameter in model.parameters())
    steps = trainer.data.steps_per_epoch
    run.log(f"run       {run.path}  (recipe {config.recipe}, seed {config.seed})")
    run.log(f"data      {config.data.dataset}: {trainer.data.describe()}")
    run.log(f"model     {model.model_name}: {parameters:,} parameters")
    run.log(f"device    {describe_device(trainer.device)}, {config.train.precision}")
    run.log(f"schedule  {config.schedule.epochs} epochs of {steps} steps, {config.data.batch_size} images a step")
    if checkpoint is not None:
        run.log(f"resumed   {checkpoint.name}: {trainer.state.epoch} epochs and {trainer.state.step} steps are done")
