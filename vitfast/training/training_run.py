"""A whole training run: options, start or resume, training, and the results."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import cast

import torch

from vitfast.config import load_config, to_yaml
from vitfast.config.schema import AUTO, Config
from vitfast.data.seeding import derive_seed
from vitfast.device import describe_device, has_fast_bf16
from vitfast.errors import UserError, explain_os_error
from vitfast.models import ImageModel
from vitfast.ops.library import chosen_kernels, is_loaded
from vitfast.quantization.quantize import describe_quantization
from vitfast.runs.run_directory import CONFIG, LOG, FollowedRun, RunDirectory, describe_environment
from vitfast.tasks import SwavTask
from vitfast.training.build import create_task, create_training_model, prepare_for_training
from vitfast.training.distributed import Ranks
from vitfast.training.finetune import adopt_preprocessing
from vitfast.training.fixed_options import MAY_CHANGE, MAY_GROW, changed_options, fixed_options
from vitfast.training.gpu_memory import parts_that_fit
from vitfast.training.lora import add_lora
from vitfast.training.prototype_images import draw_prototypes
from vitfast.training.recompute import recompute_blocks
from vitfast.training.run_summary import next_commands, result_table, resume_command, save_samples
from vitfast.training.schedule import TrainingLength
from vitfast.training.stop_signal import StopSignal
from vitfast.training.sync_batch_norm import synchronize_batch_norms
from vitfast.training.trainer import Trainer
from vitfast.training.training_data import TrainingData
from vitfast.training.training_state import TrainingState, seed_everything
from vitfast.weights.checkpoint import latest_checkpoint, resolve_checkpoint
from vitfast.weights.manifest import read_manifest

PROTOTYPES = "prototypes.png"

# a run records what it chose for these options, and a resumed one keeps it
_CHOSEN = ("train.precision=auto", "train.accumulate=null")


def run_training(arguments: Sequence[str]) -> int:
    """Trains a model.

    Returns:
        The exit code: 0, or 143 / 130 after SIGTERM / SIGINT.

    Raises:
        UserError: for every user error.
    """
    checkpoint, config = _find_start(arguments)
    with (
        StopSignal() as stop,
        Ranks(config.train.device, config.train.timeout_s) as ranks,
        chosen_kernels(config.ops.kernels, ranks.device.type),
    ):
        if config.train.threads is not None:
            torch.set_num_threads(config.train.threads)
        if config.train.precision == AUTO:
            config.train.precision = "bf16" if has_fast_bf16(ranks.device) else "fp32"
        seed_everything(config.seed)
        # everything that can reject the options comes before the folder is created
        adopt_preprocessing(config)
        data = TrainingData(config, ranks)
        if checkpoint is not None:
            data.check_resumed(checkpoint)
        length = TrainingLength.of(config.schedule, data.steps_per_epoch)
        model = create_training_model(config.model, data.train, checkpoint, headless=config.task == "swav")
        if config.finetune.lora_rank is not None:
            add_lora(model, config.finetune.lora_rank, config.finetune.lora_alpha)
        task = create_task(config, model, data.train, ranks)
        prepare_for_training(config.quantize, model, data, checkpoint)
        if config.train.recompute:
            recompute_blocks(model)
        if not ranks.is_main:  # the ranks share the weights of rank 0, but not its dropout masks
            seed_everything(derive_seed("rank", config.seed, ranks.rank))
        state = TrainingState(task, config, length, model.num_classes, ranks)
        if config.train.sync_bn is not None:
            # after the state, because process groups cannot be copied for the average
            synchronize_batch_norms(task, config.train.sync_bn, ranks)
        if config.train.accumulate is None:
            config.train.accumulate = parts_that_fit(task, config, data.train, ranks)
        run = _open_run(config, checkpoint, ranks)
        with closing(run):
            config.run_dir = str(run.path)
            trainer = Trainer(config, state, length, data, run, ranks)
            if checkpoint is not None:
                trainer.resume(checkpoint)
            with explain_os_error(f"run_dir={run.path} cannot be written"):
                run.write_text(CONFIG, to_yaml(config))
                run.write_environment(describe_environment(ranks.device))
            _log_start(trainer, checkpoint)
            return _train_and_report(trainer, stop)


def _find_start(arguments: Sequence[str]) -> tuple[Path | None, Config]:
    """Returns the checkpoint to resume from, None for a new run, and the options."""
    resume = _argument(arguments, "train.resume")
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    if resume in (None, AUTO):
        config = load_config(arguments)
        elastic = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0 and "WORLD_SIZE" in os.environ
        if (resume == AUTO or elastic) and config.run_dir is None:
            reason = "train.resume=auto" if resume == AUTO else "torchrun --max-restarts"
            raise UserError(f"{reason} needs run_dir=FOLDER, where a restarted run finds its checkpoints")
        if resume is None and not restarted:
            return None, config
        assert config.run_dir is not None
        checkpoint = latest_checkpoint(config.run_dir)
        if checkpoint is None:
            config.train.resume = AUTO
            return None, config
    else:
        checkpoint = resolve_checkpoint(resume)
    config = resumed_config(checkpoint.parent, arguments)
    _check_options(checkpoint, config)
    return checkpoint, config


def _open_run(config: Config, checkpoint: Path | None, ranks: Ranks) -> RunDirectory:
    """Creates the folder of a new run, or opens that of a resumed one, on rank 0; the others use its path."""
    run, problem = None, None
    if ranks.is_main:
        try:
            if checkpoint is not None:
                run = RunDirectory.reopen(checkpoint.parent)
            elif config.train.resume == AUTO and config.run_dir is not None and (Path(config.run_dir) / LOG).is_file():
                # the run ended before its first checkpoint: start again
                run = RunDirectory.reopen(config.run_dir)
                run.restore_metrics([])
            else:
                run = RunDirectory.create(config.run_dir, config.recipe)
        except UserError as error:
            problem = str(error)
    path, problem = ranks.from_main((None if run is None else str(run.path), problem))
    if problem is not None:
        raise UserError(problem)
    return run if run is not None else FollowedRun(Path(path), ranks.rank)


def _train_and_report(trainer: Trainer, stop: StopSignal) -> int:
    run, state, start = trainer.run, trainer.state, time.monotonic()
    try:
        metrics = trainer.fit(stop)
    except UserError as error:
        run.log(f"error: {error}", show=False)
        raise
    except RuntimeError as error:
        if not trainer.ranks.lost_contact(error):
            raise
        # the rank that failed reports the cause; a traceback of this one would hide it
        raise UserError(f"rank {trainer.ranks.rank} lost contact with another rank, which ended first") from error
    if not trainer.ranks.is_main:
        return stop.exit_code if metrics is None else 0
    if metrics is None:
        run.log(
            f"stopped by {stop.name} after step {state.step}; everything is saved. Resume with:\n"
            f"  {resume_command(run.path)}"
        )
        return stop.exit_code
    try:
        sample = save_samples(trainer.data.test or trainer.data.val or trainer.data.train, run.path)
    except OSError as error:
        run.warn(f"sample images cannot be written: {error}")
        sample = None
    if isinstance(trainer.task, SwavTask):
        try:
            draw_prototypes(trainer.task, trainer.data.train_as_evaluated, trainer.device, run.path / PROTOTYPES)
        except (OSError, UserError) as error:
            run.warn(f"{PROTOTYPES} cannot be drawn: {error}")
    table = result_table(metrics, state, trainer.config.optim.ema_decay, seconds=time.monotonic() - start)
    text = f"{table}\n\n{next_commands(trainer.config, run.path, sample, trainer.data.splits)}"
    run.log(text, show=False)
    print(f"\n{text}", file=sys.stdout, flush=True)
    return 0


def resumed_config(run_dir: Path, arguments: Sequence[str]) -> Config:
    """Returns the options of a resumed run: those of the run, with the few that may change.

    Raises:
        UserError: if an option differs that affects the result.
    """
    file = run_dir / CONFIG
    if not file.is_file():
        raise UserError(f"{file} is missing: the run cannot be resumed without its options")
    saved = load_config([f"recipe={file}"])
    overrides = [one for one in arguments if not one.startswith("recipe=") and one not in _CHOSEN]
    config = load_config([f"recipe={file}", *overrides])
    before, after = fixed_options(saved), fixed_options(config)
    changed = changed_options(before, after)
    if changed:
        listed = ", ".join(f"{key}={after[key]} (the run: {before.get(key)})" for key in changed)
        raise UserError(
            f"a resumed run cannot change these options: {listed}. Leave them out, or start a new run. Options that "
            f"may change: {', '.join(MAY_CHANGE)}; and {' and '.join(MAY_GROW)} may become larger"
        )
    folder = _argument(arguments, "run_dir")
    if folder is not None and Path(folder).resolve() != run_dir.resolve():
        raise UserError(
            f"run_dir={folder} is not {run_dir}, the folder of train.resume; a run is resumed in its folder: "
            "leave run_dir out"
        )
    recipe = _argument(arguments, "recipe")
    if recipe not in (None, saved.recipe, str(file)):
        raise UserError(f"the run {run_dir} has recipe={saved.recipe}, not {recipe}; leave recipe out to resume it")
    config.train.resume = None
    return config


def _check_options(checkpoint: Path, config: Config) -> None:
    """Raises UserError if ``config.yaml`` no longer has the options that a checkpoint was trained with."""
    recorded, options = read_manifest(checkpoint).get("options", {}), fixed_options(config)
    changed = [key for key in changed_options(recorded, options) if key in recorded]
    edited = [f"{key}={options[key]} (the checkpoint: {recorded[key]})" for key in changed]
    if edited:
        file = checkpoint.parent / CONFIG
        raise UserError(f"{file} was changed since {checkpoint.name} was saved: {', '.join(edited)}; change it back")


def _argument(arguments: Sequence[str], key: str) -> str | None:
    """Returns the value of an option on the command line, without its recipe; None if absent or null."""
    values = [value for name, _, value in (argument.partition("=") for argument in arguments) if name == key]
    return values[-1] if values and values[-1] not in ("", "null") else None


def _describe_normalization(trainer: Trainer) -> str:
    """Describes how pixels are normalized, and whether the weights were trained that way."""
    train = trainer.data.train
    text = f"mean {list(train.mean)}, std {list(train.std)}"
    known = cast(ImageModel, trainer.task.model).stored_preprocessing
    if known is None:
        return f"{text}; what the weights were trained with is not recorded in their file"
    given = [list(map(float, known[name])) for name in ("mean", "std")]
    if given == [list(map(float, one)) for one in (train.mean, train.std)]:
        return f"{text}, as the weights were trained"
    return f"{text}; the weights were trained with mean {given[0]}, std {given[1]}: see finetune.keep_preprocessing"


def _log_start(trainer: Trainer, checkpoint: Path | None) -> None:
    config, model, run = trainer.config, trainer.task.model, trainer.run
    parameters = sum(parameter.numel() for parameter in model.parameters())
    world = f"{trainer.ranks.world} x " if trainer.ranks.world > 1 else ""
    run.log(f"run       {run.path}  (recipe {config.recipe}, seed {config.seed})")
    run.log(f"data      {config.data.dataset}: {trainer.data.describe()}")
    if model.load_report is not None and checkpoint is None:
        run.log(f"weights   {model.load_report}")
        run.log(f"pixels    {_describe_normalization(trainer)}")
    frozen = trainer.config.finetune.freeze_epochs
    phase = "" if frozen == 0 else f"; {'all' if frozen is None else f'the first {frozen}'} epochs train the head only"
    if trainer.state.has_lora:
        learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        phase = f", {learning:,} of them trained (LoRA){phase}"
    run.log(f"model     {model.model_name}: {parameters:,} parameters{phase}")
    if config.quantize.format is not None:
        run.log(f"numbers   {describe_quantization(model)}")
    run.log(f"device    {world}{describe_device(trainer.device)}, {config.train.precision}")
    if config.train.precision == "bf16" and not has_fast_bf16(trainer.device):
        run.log("slow      this device has no fast bf16 instructions: fp32 is faster; train.precision=auto chooses")
    if config.ops.kernels != "auto":
        run.log(f"kernels   {config.ops.kernels}")
    elif not is_loaded():
        run.log("kernels   none: pure PyTorch, correct but slow; vitfast.build_info() says why")
    run.log(f"schedule  {trainer.length.describe()}, {config.data.batch_size} images a step")
    if trainer.length.note is not None:
        run.warn(trainer.length.note)
    if checkpoint is not None:
        run.log(f"resumed   {checkpoint.name}: {trainer.state.epoch} epochs and {trainer.state.step} steps completed")
