"""The training loop."""

from __future__ import annotations

import math
import time
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from vitfast.config.schema import Config
from vitfast.data import ImageDataset, create_mixing
from vitfast.device import autocast, synchronize
from vitfast.errors import UserError
from vitfast.evaluation.evaluate import evaluate
from vitfast.models import ImageModel
from vitfast.quantization.record import quantization_record
from vitfast.runs.run_directory import CURVES, RunDirectory
from vitfast.training.check_state import first_non_finite
from vitfast.training.distributed import Ranks, Replica, full_tensor
from vitfast.training.finite_guard import batch_indices, not_finite
from vitfast.training.fixed_options import fixed_options
from vitfast.training.knn_metric import knn_metrics
from vitfast.training.progress import progress_bar
from vitfast.training.run_summary import describe_metrics
from vitfast.training.schedule import TrainingLength
from vitfast.training.stop_signal import StopSignal
from vitfast.training.tracking import Tracking, draw_curves
from vitfast.training.training_data import TrainingData
from vitfast.training.training_state import TrainingState
from vitfast.weights.checkpoint import (
    BEST,
    link_best,
    list_checkpoints,
    load_state,
    load_weights_file,
    prune_checkpoints,
    save_checkpoint,
)
from vitfast.weights.manifest import CheckpointError

_SECONDS_BETWEEN_CURVES = 20.0
_MAX_SKIPPED_IN_A_ROW = 10


class Trainer:
    """Trains a task, evaluates it after each epoch, and saves checkpoints from which it resumes bit-exactly.

    On the CPU, with the same number of threads and ranks, an interrupted and resumed run ends with the same weights,
    average, optimizer state and metrics as an uninterrupted one: order and augmentation are functions of (seed, epoch,
    index), and everything else is in the checkpoint.

    Every rank has a trainer and processes its share of each batch; rank 0 writes the files.
    """

    def __init__(
        self,
        config: Config,
        state: TrainingState,
        length: TrainingLength,
        data: TrainingData,
        run: RunDirectory,
        ranks: Ranks,
    ) -> None:
        self.config, self.state, self.length, self.data, self.run = config, state, length, data, run
        self.ranks, self.device = ranks, ranks.device
        self.task = state.task
        data.warn = run.warn
        self.num_classes = len(data.train.class_names)
        self.is_swav = config.task == "swav"
        self.mixing = create_mixing(config.data.augment, self.num_classes, config.seed)
        self.replica = Replica(self.task, ranks, compiled=config.train.compile)
        self._saved: tuple[int, int] | None = None  # (epoch, step) of the newest checkpoint
        self._curves_drawn = time.monotonic()

    def resume(self, checkpoint: Path) -> None:
        """Restores a verified checkpoint and the rows of ``metrics.jsonl`` up to it."""
        ema = load_weights_file(checkpoint, "ema") if self.state.average is not None else None
        saved = load_state(checkpoint)
        try:
            self.state.load_state_dict(saved, load_weights_file(checkpoint, "model"), ema)
        except UserError as error:
            if str(checkpoint) in str(error):
                raise
            raise CheckpointError(f"{checkpoint}: {error}") from error
        self.run.restore_metrics(self.state.metric_rows)
        self._saved = (self.state.epoch, self.state.step)
        if saved["total_steps"] < self.length.total_steps:
            text = f"from {saved['total_steps']:,} to {self.length.total_steps:,} steps; the learning rate follows the"
            self.run.log(f"extended  {text} schedule of that length from here on")

    def fit(self, stop: StopSignal) -> dict[str, Any] | None:
        """Trains to the last epoch and tests.

        Args:
            stop: checked between steps; if set, a checkpoint is saved and training ends.

        Returns:
            The metrics by split, or None if it was stopped.

        Raises:
            NonFiniteError: before an update with a non-finite loss or gradient.
            UserError: if the last checkpoint cannot be written.
        """
        state, epochs = self.state, self.length.epochs
        self.stop = stop
        stop.share(self.ranks)
        self.tracking = Tracking(self.config, self.run, state.step, enabled=self.ranks.is_main)
        total, done = self._images_up_to(epochs, 0), self._images_up_to(state.epoch, state.step_in_epoch)
        with closing(self.tracking), progress_bar(total, done, enabled=self.ranks.is_main) as bar:
            self.stop.agree()
            while state.epoch < epochs and not self.stop:
                bar.set_description_str(f"epoch {state.epoch + 1}/{epochs}", refresh=False)
                self._train_epoch(bar)
                if self.stop or not self._end_epoch():
                    break
            if self.stop:
                self._save(must=True)
                self._draw(force=True)
                return None
            bar.set_description_str("test", refresh=False)
            return self._test()

    def _images_up_to(self, epoch: int, step: int) -> int:
        """Images of the run before a step of an epoch, both counted from 0."""
        whole_epochs = min(epoch, self.length.epochs - 1)
        if epoch > whole_epochs:
            step = self.length.steps_in(whole_epochs)
        batch = self.config.data.batch_size
        return whole_epochs * self.data.images_per_epoch + min(step * batch, self.data.images_per_epoch)

    def _train_epoch(self, bar: tqdm[Any]) -> None:
        state, steps = self.state, self.length.steps_in(self.state.epoch)
        if state.step_in_epoch >= steps:
            return  # resumed between the last step and the end of the epoch
        loader = self.data.train_loader(state.epoch, state.step_in_epoch)
        every = self.config.train.checkpoint_every_steps
        self.task.train()
        if state.trunk.apply(state.epoch):  # the reducer of gradients is built for the parameters that have them
            self.replica = Replica(self.task, self.ranks, compiled=self.config.train.compile)
        earlier_seconds, start = state.seconds_in_epoch, time.perf_counter()
        for batch, (images, labels) in enumerate(loader):
            count = self.data.batch_size(state.step_in_epoch)
            self._train_step(images, labels, loader, batch)
            state.seconds_in_epoch = earlier_seconds + time.perf_counter() - start
            bar.update(count)
            last = state.step_in_epoch == steps
            if state.step % self.config.train.log_every == 0 or last:
                self._report_step(bar)
            if self.stop or last:
                break
            if every is not None and state.step % every == 0:
                self._save(must=False)
        synchronize(self.device)
        state.seconds_in_epoch = earlier_seconds + time.perf_counter() - start

    def _train_step(self, images: Tensor, labels: Tensor, loader: DataLoader[Any], batch: int) -> None:
        state = self.state
        images, labels = images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
        targets = labels
        if self.mixing is not None and len(labels):
            images, targets = self.mixing(images, labels, epoch=state.epoch, step=state.step_in_epoch)
        self.task.step = state.step
        loss, result = self._accumulate_gradients(images, targets)
        self.task.after_backward()
        state.scaler.unscale_(state.optimizer)
        norm = self._clip_gradients()
        if self._check_finite(loss, norm, loader, batch):
            # otherwise the schedule would warn that it is called before the first optimizer step
            state.optimizer._opt_called = True  # type: ignore[attr-defined]
        else:
            state.scaler.step(state.optimizer)
            if state.average is not None:
                state.average.update_parameters(self.task)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        state.schedule.step()
        state.meter.update(loss, result.get("output"), labels, result.get("exits"))
        state.step += 1
        state.step_in_epoch += 1

    def _accumulate_gradients(self, images: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Accumulates the gradients of this rank's images, in parts of similar size; returns mean loss and outputs."""
        state, count, data = self.state, len(images), self.data.train
        # gradients are averaged over the ranks: weight each rank by its share of the step's images
        share = self.ranks.world / self.data.batch_size(state.step_in_epoch)
        if count == 0:
            # the other ranks wait for gradients: contribute zeros, by a blank image with weight 0
            images = torch.zeros(1, data.in_chans, data.img_size, data.img_size, device=self.device)
            targets, share = torch.zeros(1, dtype=torch.int64, device=self.device), 0.0
        parts = min(self.config.train.accumulate or 1, len(images))
        losses: list[Tensor] = []
        outputs: list[dict[str, Tensor]] = []
        pairs = zip(images.tensor_split(parts), targets.tensor_split(parts), strict=True)
        for part, (some_images, some_targets) in enumerate(pairs):
            with autocast(self.device, self.config.train.precision):
                result = self.replica(some_images, some_targets, last=part == parts - 1)
            state.scaler.scale(result["loss"] * (len(some_images) * share)).backward()
            losses.append(result["loss"].detach() * (len(some_images) / len(images)))
            # logits: ``output`` [B, K] and, with exits, ``exits`` [E, B, K]
            outputs.append({key: result[key].detach() for key in ("output", "exits") if key in result})
        joined = {key: torch.cat([output[key] for output in outputs], dim=-2)[..., :count, :] for key in outputs[0]}
        return torch.stack(losses).sum(), joined

    def _clip_gradients(self) -> Tensor:
        """Clips the gradients to the norm ``optim.clip_grad`` if it is set; returns the norm before."""
        limit = self.config.optim.clip_grad
        if limit is not None:
            return full_tensor(torch.nn.utils.clip_grad_norm_(self.task.parameters(), limit))
        gradients = [parameter.grad for parameter in self.task.parameters() if parameter.grad is not None]
        return full_tensor(torch.nn.utils.get_total_norm(gradients))

    def _check_finite(self, loss: Tensor, norm: Tensor, loader: DataLoader[Any], batch: int) -> bool:
        """Stops all ranks before a non-finite update, and shares a stop signal; returns whether fp16 skips the step.

        Overflowing gradients are expected with fp16: the scaler reduces the loss scale. Too many in a row are an error.
        """
        state = self.state
        # a single device synchronization: NaN and infinity propagate through the sum
        finite = math.isfinite(float(loss + norm))
        overflow = self.config.train.precision == "fp16" and not finite and math.isfinite(float(loss))
        overflow = overflow and state.skipped_in_a_row < _MAX_SKIPPED_IN_A_ROW
        failed = not finite and not overflow
        bad, overflows, signal = self.ranks.largest(float(failed), float(overflow), self.stop.number or 0)
        self.stop.set_agreed(signal)
        if bad:
            indices = [] if finite else batch_indices(loader, batch)
            self.run.write_diagnostics(self.task.diagnostics(), self.ranks.rank)
            raise not_finite(
                loss,
                norm,
                step=state.step + 1,
                epoch=state.epoch + 1,
                indices=[index for of_rank in self.ranks.gather(indices) for index in of_rank],
                file_of=self.data.train.path,
                write_record=self.run.write_non_finite,
            )
        state.skipped_in_a_row = state.skipped_in_a_row + 1 if overflows else 0
        return bool(overflows)

    def _report_step(self, bar: tqdm[Any]) -> None:
        state = self.state
        computed, lr = state.meter.compute(), state.learning_rate
        metrics: dict[str, Any] = {name: computed[name] for name in ("loss", "top1") if name in computed}
        so_far = ", ".join(describe_metrics(metrics))
        bar.set_postfix_str(so_far, refresh=False)
        self.tracking.log({"split": "within_epoch", "step": state.step, **metrics, "lr": lr})
        self.run.log(f"step {state.step}: epoch {state.epoch + 1}, so far {so_far}, lr {lr:.3g}", show=False)

    def _end_epoch(self) -> bool:
        """Validates and records an epoch; returns False if it was stopped before that was complete."""
        state = self.state
        train = state.meter.compute()
        speed = train.pop("images") / max(state.seconds_in_epoch, 1e-9)
        metrics: dict[str, Any] = {"train": {**train, "images_per_s": round(speed, 1)}}
        if (split := self._evaluated_split()) is not None:
            evaluated = self._evaluate(self.data.splits[split])
            if evaluated is None:
                return False
            metrics[split] = evaluated
        is_best = state.finish_epoch(metrics)
        for split, values in metrics.items():
            self._record(split, values)
        parts = [f"epoch {state.epoch:>{len(str(self.length.epochs))}}/{self.length.epochs}"]
        parts += [f"{split} {' '.join(describe_metrics(one))}" for split, one in metrics.items()]
        parts.append(f"{speed:,.0f} images/s")
        self.run.log("  ".join(parts) + ("  best" if is_best else ""))
        final = state.epoch == self.length.epochs
        if is_best or final or state.epoch % self.config.train.checkpoint_every_epochs == 0:
            self._save(must=final)
        self._draw(force=False)
        return True

    @property
    def _is_evaluated(self) -> bool:
        """Whether splits are evaluated at all: without labels only if a kNN classifier is wanted and has classes."""
        return not self.is_swav or (self.config.swav.knn_every_epochs > 0 and self.num_classes > 1)

    def _evaluated_split(self) -> str | None:
        """Returns the split that is evaluated after the running epoch, or None."""
        if self.is_swav:
            if not self._is_evaluated or (self.state.epoch + 1) % self.config.swav.knn_every_epochs:
                return None
            # no choice depends on the test images: without a val split there is no best checkpoint
            return next((split for split in ("val", "test") if split in self.data.splits), None)
        return "val" if self.data.val is not None else None

    def _evaluate(self, dataset: ImageDataset) -> dict[str, Any] | None:
        """Returns the metrics of a split, or None if that was stopped."""
        task, precision = self.state.evaluated_task, self.config.train.precision
        if self.is_swav:
            return knn_metrics(
                cast(ImageModel, task.model),
                self.data,
                dataset,
                self.ranks,
                precision=precision,
                should_stop=self.stop.agree,
            )
        evaluation = evaluate(
            task,
            self.data.evaluation_loader(dataset),
            num_classes=self.num_classes,
            device=self.device,
            num_exits=getattr(self.task.model, "num_exits", 1),
            precision=precision,
            should_stop=self.stop.agree,
        )
        return None if evaluation is None else evaluation.metrics()

    def _test(self) -> dict[str, Any] | None:
        metrics = dict(self.state.metrics)
        if self.data.test is not None and "test" not in metrics and self._is_evaluated:
            tested = self._evaluate(self.data.test)
            if tested is None:
                return None  # the last checkpoint is saved: a resumed run repeats the test
            metrics["test"] = tested
            self._record("test", tested)
        self._draw(force=True)
        return metrics

    def _record(self, split: str, metrics: dict[str, Any]) -> None:
        state = self.state
        row = {"split": split, "epoch": state.epoch, "step": state.step, "lr": state.learning_rate, **metrics}
        state.metric_rows.append(row)
        try:
            self.run.append_metrics(row)
        except OSError as error:
            self.run.warn(f"metrics.jsonl could not be written: {error}; training continues")
        self.tracking.log(row)

    def _save(self, must: bool) -> None:
        """Saves a checkpoint; a failure is an error if it ``must`` succeed, otherwise a warning."""
        state, model = self.state, self.task.model
        if self._saved == (state.epoch, state.step):
            return
        manifest = {
            "model": {"name": model.model_name, "fields": model.model_fields},
            "class_names": self.data.train.class_names,
            "data": self.data.manifest(),
            "options": fixed_options(self.config),
            "epoch": state.epoch,
            "metrics": {**state.metrics, "best_val_top1": state.best_top1, "best_step": state.best_step},
            "quantization": quantization_record(model),
            "exit_thresholds": None,
        }
        # collective: every rank contributes its state, rank 0 writes, and all learn whether it succeeded
        with self.stop.saving():
            parts = {"model": state.model_state(), "ema": state.ema_state(), "state": state.state_dict()}
            problem = self.ranks.from_main(self._write_checkpoint(parts, manifest) if self.ranks.is_main else None)
        if problem is None:
            self._saved = (state.epoch, state.step)
            return
        text = f"the checkpoint of step {state.step} could not be saved: {problem}"
        if must:
            raise UserError(f"{text}; {self._earlier_checkpoints()}")
        self.run.log(f"warning: {text}; training continues, {self._earlier_checkpoints()}")

    def _earlier_checkpoints(self) -> str:
        if list_checkpoints(self.run.path):
            return f"earlier checkpoints in {self.run.path} are intact"
        return f"and there is no earlier checkpoint in {self.run.path} that a resume could use"

    def _write_checkpoint(self, parts: dict[str, Any], manifest: dict[str, Any]) -> str | None:
        """Writes a checkpoint and removes old ones; returns the error, or None."""
        names = {key for key, _ in self.task.model.named_parameters()}
        if bad := first_non_finite(parts["model"], names) or first_non_finite(parts["ema"] or {}, names):
            return f"{bad} is not finite; try a lower optim.lr, or optim.clip_grad=1.0"
        try:
            path = save_checkpoint(self.run.path, step=self.state.step, **parts, manifest=manifest)
        except OSError as error:
            return str(error)
        self.run.log(f"saved {path.name}", show=False)
        try:
            link_best(self.run.path, self.state.best_step)
        except OSError as error:
            self.run.warn(f"the link {BEST} could not be written: {error}")
        try:
            prune_checkpoints(self.run.path, self.config.train.keep_checkpoints, self.state.best_step, self.state.step)
        except OSError as error:
            self.run.warn(f"an old checkpoint could not be removed: {error}")
        return None

    def _draw(self, force: bool) -> None:
        if not self.ranks.is_main or (not force and time.monotonic() - self._curves_drawn < _SECONDS_BETWEEN_CURVES):
            return
        title = f"{self.task.model.model_name} on {self.config.data.dataset}"
        try:
            draw_curves(self.state.metric_rows, self.run.path / CURVES, title)
        except OSError as error:
            self.run.warn(f"{CURVES} could not be written: {error}; training continues")
        self._curves_drawn = time.monotonic()
