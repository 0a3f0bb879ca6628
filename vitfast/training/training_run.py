"""A whole training run, from its options to the table at the end."""

from __future__ import annotations

import os
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
from vitfast.data.seeding import derive_seed
from vitfast.device import describe_device
from vitfast.errors import UserError
from vitfast.ops.library import chosen_kernels
from vitfast.quantization.record import describe_quantization
from vitfast.runs.checkpoint import latest_checkpoint, resolve_checkpoint
from vitfast.runs.environment import describe_environment
from vitfast.runs.run_directory import CONFIG, LOG, FollowedRun, RunDirectory
from vitfast.training.quantized_training import prepare_for_training
from vitfast.training.random_state import seed_everything
from vitfast.training.ranks import Ranks
from vitfast.training.stop_signal import StopSignal
from vitfast.training.trainer import Trainer
from vitfast.training.training_data import TrainingData
from vitfast.training.training_length import TrainingLength
from vitfast.training.training_model import create_training_model
from vitfast.training.training_report import next_commands, result_table, resume_command, save_samples
from vitfast.training.training_state import TrainingState
from vitfast.training.training_task import create_task

AUTO = "auto"

# What may differ when a run goes on: where it runs and what it keeps, not what it learns.
_MAY_CHANGE = (
    "data.root",
    "data.workers",
    "data.on_corrupt",
    "train.device",
    "train.compile",
    "train.threads",
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
    checkpoint, config = _find_beginning(arguments)
    with (
        StopSignal() as stop,
        Ranks(config.train.device, config.train.timeout_s) as ranks,
        chosen_kernels(config.ops.kernels, ranks.device.type),
    ):
        if config.train.threads is not None:
            torch.set_num_threads(config.train.threads)
        seed_everything(config.seed)
        # All that can refuse the options comes before the folder is made.
        data = TrainingData(config, ranks)
        length = TrainingLength.of(config.schedule, data.steps_per_epoch)
        model = create_training_model(config.model, data.train)
        task = create_task(config, model, data.train, ranks.device)
        prepare_for_training(config.quantize, model, data, checkpoint)
        if not ranks.is_main:  # the weights are the main rank's; what is dropped out shall differ
            seed_everything(derive_seed("rank", config.seed, ranks.rank))
        state = TrainingState(task, config, length, len(data.train.class_names), ranks)
        run = _open_run(config, checkpoint, ranks)
        with closing(run):
            config.run_dir = str(run.path)
            trainer = Trainer(config, state, length, data, run, ranks, show_progress)
            if checkpoint is not None:
                trainer.resume(checkpoint)
            _write_beginning(config, run, ranks.device)
            _log_beginning(trainer, checkpoint)
            return _train_and_report(trainer, stop)


def _find_beginning(arguments: Sequence[str]) -> tuple[Path | None, Config]:
    """Returns the checkpoint to go on from, None for a new run, and the options."""
    resume = _given(arguments, "train.resume")
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    if resume in (None, AUTO):
        config = load_config(list(arguments))
        elastic = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0 and "WORLD_SIZE" in os.environ
        if (resume == AUTO or elastic) and config.run_dir is None:
            reason = "train.resume=auto" if resume == AUTO else "torchrun --max-restarts"
            raise UserError(f"{reason} needs run_dir=FOLDER: where a restarted run finds its checkpoints")
        if resume is None and not restarted:
            return None, config
        assert config.run_dir is not None
        checkpoint = latest_checkpoint(config.run_dir)
        if checkpoint is None:
            config.train.resume = AUTO
            return None, config
    else:
        checkpoint = resolve_checkpoint(resume)
    return checkpoint, resumed_config(checkpoint.parent, arguments)


def _open_run(config: Config, checkpoint: Path | None, ranks: Ranks) -> RunDirectory:
    """Makes the folder of a new run, or opens that of one that goes on; the main rank says which folder it is."""
    run, problem = None, None
    if ranks.is_main:
        try:
            if checkpoint is not None:
                run = RunDirectory.reopen(checkpoint.parent)
            elif config.train.resume == AUTO and config.run_dir is not None and (Path(config.run_dir) / LOG).is_file():
                # a run that ended before its first checkpoint: it begins again
                run = RunDirectory.reopen(config.run_dir)
                run.keep_metrics(0)
            else:
                run = RunDirectory.create(config.run_dir, config.recipe)
        except UserError as error:
            problem = str(error)
    path, problem = ranks.from_main((None if run is None else str(run.path), problem))
    if problem is not None:
        raise UserError(problem)
    return run if run is not None else FollowedRun(Path(path), ranks.rank)


def _train_and_report(trainer: Trainer, stop: StopSignal) -> int:
    run, start = trainer.run, time.monotonic()
    try:
        metrics = trainer.fit(stop)
    except UserError as error:
        run.log(f"error: {error}", show=False)
        raise
    except RuntimeError as error:
        if not trainer.ranks.lost_contact(error):
            raise
        # the rank that failed says why; a traceback of this one would hide it
        raise UserError(f"rank {trainer.ranks.rank} lost contact with another one, which ended first") from error
    if not trainer.ranks.is_main:
        return stop.exit_code if metrics is None else 0
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
    together = f"{trainer.ranks.world} x " if trainer.ranks.world > 1 else ""
    run.log(f"run       {run.path}  (recipe {config.recipe}, seed {config.seed})")
    run.log(f"data      {config.data.dataset}: {trainer.data.describe()}")
    run.log(f"model     {model.model_name}: {parameters:,} parameters")
    if config.quantize.format is not None:
        run.log(f"numbers   {describe_quantization(model)}")
    run.log(f"device    {together}{describe_device(trainer.device)}, {config.train.precision}")
    if config.ops.kernels != "auto":
        run.log(f"kernels   {config.ops.kernels}")
    run.log(f"schedule  {trainer.length.describe()}, {config.data.batch_size} images a step")
    if checkpoint is not None:
        run.log(f"resumed   {checkpoint.name}: {trainer.state.epoch} epochs and {trainer.state.step} steps are done")
