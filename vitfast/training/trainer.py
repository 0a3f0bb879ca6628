"""The training loop."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from vitfast.config.schema import Config
from vitfast.data import create_mixing
from vitfast.device import autocast, synchronize
from vitfast.errors import UserError
from vitfast.evaluation.evaluate import Evaluation, evaluate
from vitfast.quantization.record import quantization_record
from vitfast.runs.checkpoint import load_state, load_weights_file, prune_checkpoints, save_checkpoint
from vitfast.runs.run_directory import CURVES, RunDirectory
from vitfast.training.curves import draw_curves
from vitfast.training.finite_guard import batch_indices, not_finite
from vitfast.training.progress import Progress
from vitfast.training.ranks import Ranks, total_norm, whole
from vitfast.training.replica import Replica
from vitfast.training.shared_stop import SharedStop
from vitfast.training.stop_signal import StopSignal
from vitfast.training.tracking import Tracking
from vitfast.training.training_data import TrainingData
from vitfast.training.training_length import TrainingLength
from vitfast.training.training_state import TrainingState

_SECONDS_BETWEEN_CURVES = 20.0
_SKIPPED_IN_A_ROW = 10


class Trainer:
    """Trains a task, measures it after each epoch, and leaves checkpoints from which it goes on bit by bit.

    On the CPU, with the same number of threads and ranks, a run that was interrupted anywhere and resumed ends with the
    same weights, average, optimizer state and metrics as one that was not: order and augmentation are functions of
    (seed, epoch, index), and all else is in the checkpoint.

    Every rank has a trainer and works on its part of each batch; the main one writes.

    Args:
        config: of the run.
        state: the task and all that training changes.
        length: of the run.
        data: the splits.
        run: the folder.
        ranks: who train together, and on which device this one does.
        show_progress: False: no bar; None: if stderr is a terminal.
    """

    def __init__(
        self,
        config: Config,
        state: TrainingState,
        length: TrainingLength,
        data: TrainingData,
        run: RunDirectory,
        ranks: Ranks,
        show_progress: bool | None = None,
    ) -> None:
        self.config, self.state, self.length, self.data, self.run = config, state, length, data, run
        self.ranks, self.device = ranks, ranks.device
        self.task = state.task
        self.show_progress = show_progress if ranks.is_main else False
        data.warn = run.warn
        self.num_classes = len(data.train.class_names)
        self.mixing = create_mixing(config.data.augment, self.num_classes, config.seed)
        self.replica = Replica(self.task, ranks, sharded=config.train.shard, compiled=config.train.compile)
        self.tracking: Tracking | None = None
        self._saved: tuple[int, int] | None = None  # (epoch, step) of the newest checkpoint
        self._curves_drawn = time.monotonic()

    def resume(self, checkpoint: Path) -> None:
        """Goes back to a verified checkpoint; metrics that were written after it are cut off."""
        ema = load_weights_file(checkpoint, "ema") if self.state.average is not None else None
        self.state.load_state_dict(load_state(checkpoint), load_weights_file(checkpoint, "model"), ema)
        self.run.keep_metrics(self.state.metrics_lines)
        self._saved = (self.state.epoch, self.state.step)

    def fit(self, stop: StopSignal) -> dict[str, Any] | None:
        """Trains to the last epoch and tests.

        Args:
            stop: looked at between steps; once it is set, a checkpoint is saved and training ends.

        Returns:
            The metrics by split, or None if it was stopped.

        Raises:
            NonFiniteError: before an update with a loss or gradient that is not finite.
            UserError: if the last checkpoint cannot be written.
        """
        if self.ranks.is_main:
            self.tracking = Tracking(self.config, self.run, self.state.step)
        try:
            return self._fit(SharedStop(stop, self.ranks))
        finally:
            if self.tracking is not None:
                self.tracking.close()

    def _fit(self, shared: SharedStop) -> dict[str, Any] | None:
        state, epochs = self.state, self.length.epochs
        total, done = self._images_up_to(epochs, 0), self._images_up_to(state.epoch, state.step_in_epoch)
        with Progress(total, done, self.show_progress) as progress:
            self.run.echo_through(progress.write)
            shared.agree()
            while state.epoch < epochs and not shared:
                progress.phase(f"epoch {state.epoch + 1}/{epochs}")
                self._train_epoch(shared, progress)
                if shared or not self._end_epoch(shared):
                    break
            if shared:
                self._save(must=True)
                self._draw(force=True)
                return None
            progress.phase("test")
            return self._test(shared)

    def _images_up_to(self, epoch: int, step: int) -> int:
        """Images of the run before a step of an epoch, both counted from 0."""
        whole_epochs = min(epoch, self.length.epochs - 1)
        if epoch > whole_epochs:
            step = self.length.steps_in(whole_epochs)
        batch = self.config.data.batch_size
        return whole_epochs * self.data.images_per_epoch + min(step * batch, self.data.images_per_epoch)

    def _train_epoch(self, stop: SharedStop, progress: Progress) -> None:
        state, steps = self.state, self.length.steps_in(self.state.epoch)
        if state.step_in_epoch >= steps:
            return  # resumed between the last step and the end of the epoch
        loader = self.data.train_loader(state.epoch, state.step_in_epoch)
        every = self.config.train.checkpoint_every_steps
        self.task.train()
        earlier_seconds, start = state.seconds_in_epoch, time.perf_counter()
        for batch, (images, labels) in enumerate(loader):
            count = self.data.batch_size(state.step_in_epoch)
            self._train_step(images, labels, loader, batch, stop)
            state.seconds_in_epoch = earlier_seconds + time.perf_counter() - start
            progress.advance(count)
            last = state.step_in_epoch == steps
            if state.step % self.config.train.log_every == 0 or last:
                self._report_step(progress)
            if stop or last:
                break
            if every is not None and state.step % every == 0:
                self._save(must=False)
        synchronize(self.device)
        state.seconds_in_epoch = earlier_seconds + time.perf_counter() - start

    def _train_step(
        self, images: torch.Tensor, labels: torch.Tensor, loader: Any, batch: int, stop: SharedStop
    ) -> None:
        state = self.state
        images, labels = images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
        targets = labels
        if self.mixing is not None and len(labels):
            images, targets = self.mixing(images, labels, epoch=state.epoch, step=state.step_in_epoch)
        loss, result = self._accumulate_gradients(images, targets)
        state.scaler.unscale_(state.optimizer)
        norm = self._clip_gradients()
        overflow = self._check_finite(loss, norm, loader, batch, stop)
        if overflow:
            # else the schedule takes a skipped first step for a wrong order
            state.optimizer._opt_called = True  # type: ignore[attr-defined]
        else:
            state.scaler.step(state.optimizer)
            if state.average is not None:
                state.average.update_parameters(self.task)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        state.schedule.step()
        state.meter.update(loss, result["output"], labels, result.get("exits"))
        state.step += 1
        state.step_in_epoch += 1

    def _accumulate_gradients(
        self, images: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Adds the gradients of this rank's images, in parts of nearly the same size; returns their mean loss."""
        state, count = self.state, len(images)
        # the ranks' gradients are averaged, so that each counts by its share of all images of the step
        share = self.ranks.world / self.data.batch_size(state.step_in_epoch)
        if count == 0:  # the others wait for this rank's gradients: those of nothing, from an image that does not count
            with self._autocast():
                idle = self.replica(*self._idle_image(), last=True)
            state.scaler.scale(idle["loss"] * 0.0).backward()
            return torch.zeros((), device=self.device), {
                key: value[..., :0, :] for key, value in _outputs(idle).items()
            }
        parts = min(self.config.train.accumulate, count)
        losses: list[torch.Tensor] = []
        outputs: list[dict[str, torch.Tensor]] = []
        pairs = zip(images.tensor_split(parts), targets.tensor_split(parts), strict=True)
        for part, (some_images, some_targets) in enumerate(pairs):
            with self._autocast():
                result = self.replica(some_images, some_targets, last=part == parts - 1)
            state.scaler.scale(result["loss"] * (len(some_images) * share)).backward()
            losses.append(result["loss"].detach() * (len(some_images) / count))
            outputs.append(_outputs(result))
        joined = {key: torch.cat([output[key] for output in outputs], dim=-2) for key in outputs[0]}
        return torch.stack(losses).sum(), joined

    def _autocast(self) -> AbstractContextManager[object]:
        return autocast(self.device, self.config.train.precision)

    def _idle_image(self) -> tuple[torch.Tensor, torch.Tensor]:
        size = self.data.train.img_size
        image = torch.zeros(1, self.data.train.in_chans, size, size, device=self.device)
        return image, torch.zeros(1, dtype=torch.int64, device=self.device)

    def _clip_gradients(self) -> torch.Tensor:
        """Returns the norm of all gradients, which are scaled down where it is above ``optim.clip_grad``."""
        limit = self.config.optim.clip_grad
        if limit is not None:
            return whole(torch.nn.utils.clip_grad_norm_(self.task.parameters(), limit))
        return total_norm([parameter.grad for parameter in self.task.parameters() if parameter.grad is not None])

    def _check_finite(self, loss: torch.Tensor, norm: torch.Tensor, loader: Any, batch: int, stop: SharedStop) -> bool:
        """Stops all ranks before a bad update, and tells them of a stop; returns whether fp16 skips this step.

        Gradients that overflow are part of fp16: the scaler halves the scale of the loss. But not for ever.
        """
        state = self.state
        # one wait for the device: NaN and infinity both survive the sum
        finite = math.isfinite(float(loss + norm))
        overflow = self.config.train.precision == "fp16" and not finite and math.isfinite(float(loss))
        overflow = overflow and state.skipped_in_a_row < _SKIPPED_IN_A_ROW
        bad, overflows, signal = self.ranks.largest(float(not finite and not overflow), float(overflow), stop.number)
        stop.heard(signal)
        if bad:
            indices = [] if finite else batch_indices(loader, batch)
            raise not_finite(
                loss,
                norm,
                step=state.step + 1,
                epoch=state.epoch + 1,
                indices=[index for of_rank in self.ranks.gather(indices) for index in of_rank],
                file_of=self.data.train.path,
                write_down=self.run.write_non_finite,
            )
        state.skipped_in_a_row = state.skipped_in_a_row + 1 if overflows else 0
        return bool(overflows)

    def _report_step(self, progress: Progress) -> None:
        figures, state = self.state.meter.compute(), self.state
        progress.show(figures["loss"], figures["top1"])
        if self.tracking is not None:
            so_far = {"loss": figures["loss"], "top1": figures["top1"], "lr": state.learning_rate}
            self.tracking.log({"split": "within_epoch", "step": state.step, **so_far})
        self.run.log(
            f"step {state.step}: epoch {state.epoch + 1}, so far loss {figures['loss']:.4f}, "
            f"top-1 {figures['top1']:.2%}, lr {state.learning_rate:.3g}",
            show=False,
        )

    def _end_epoch(self, stop: SharedStop) -> bool:
        """Validates and records an epoch; returns False if it was stopped before that was whole."""
        state = self.state
        figures = state.meter.compute()
        speed = figures.pop("images") / max(state.seconds_in_epoch, 1e-9)
        metrics: dict[str, Any] = {"train": {**figures, "images_per_s": round(speed, 1)}}
        if self.data.val is not None:
            evaluation = self._evaluate(self.data.val, stop)
            if evaluation is None:
                return False
            metrics["val"] = evaluation.metrics()
        is_best = state.finish_epoch(metrics)
        for split, figures in metrics.items():
            self._record(split, figures)
        self.run.log(self._epoch_line(metrics, is_best))
        final = state.epoch == self.length.epochs
        if is_best or final or state.epoch % self.config.train.checkpoint_every_epochs == 0:
            self._save(must=final)
        self._draw(force=False)
        return True

    def _epoch_line(self, metrics: dict[str, Any], is_best: bool) -> str:
        epochs = self.length.epochs
        parts = [f"epoch {self.state.epoch:>{len(str(epochs))}}/{epochs}"]
        for split, figures in metrics.items():
            parts.append(f"{split} loss {figures['loss']:.4f} top-1 {figures['top1']:7.2%}")
        parts.append(f"{metrics['train']['images_per_s']:,.0f} images/s")
        return "  ".join(parts) + ("  best" if is_best else "")

    def _evaluate(self, dataset: Any, stop: SharedStop) -> Evaluation | None:
        return evaluate(
            self.state.evaluated_task,
            self.data.evaluation_loader(dataset),
            num_classes=self.num_classes,
            device=self.device,
            num_exits=getattr(self.task.model, "num_exits", 1),
            precision=self.config.train.precision,
            should_stop=stop.agree,
        )

    def _test(self, stop: SharedStop) -> dict[str, Any] | None:
        metrics = dict(self.state.metrics)
        if self.data.test is not None:
            evaluation = self._evaluate(self.data.test, stop)
            if evaluation is None:
                return None  # the last checkpoint is saved: resuming tests again
            metrics["test"] = evaluation.metrics()
            self._record("test", metrics["test"])
        self._draw(force=True)
        return metrics

    def _record(self, split: str, figures: dict[str, Any]) -> None:
        line = {
            "split": split,
            "epoch": self.state.epoch,
            "step": self.state.step,
            "loss": figures["loss"],
            "top1": figures["top1"],
            "top5": figures["top5"],
            "lr": self.state.learning_rate,
            "images_per_s": figures["images_per_s"],
        }
        if "exits" in figures:
            line["exits"] = figures["exits"]
        try:
            self.run.append_metrics(line)
        except OSError as error:
            self.run.log(f"warning: metrics.jsonl could not be written: {error}; training goes on")
        else:
            self.state.metrics_lines += 1
        if self.tracking is not None:
            self.tracking.log(line)

    def _save(self, must: bool) -> None:
        """Saves a checkpoint; unless it ``must`` succeed, a failure is only reported, and training goes on."""
        state, model = self.state, self.task.model
        if self._saved == (state.epoch, state.step):
            return
        manifest = {
            "model": {"name": model.model_name, "fields": model.model_fields},
            "class_names": self.data.train.class_names,
            "data": self.data.manifest(),
            "epoch": state.epoch,
            "metrics": {**state.metrics, "best_val_top1": state.best_top1, "best_step": state.best_step},
            "quantization": quantization_record(model),
            "exit_thresholds": None,
        }
        # every rank adds its part, the main one writes, and all hear how it went
        parts = {"model": state.model_state(), "ema": state.ema_state(), "state": state.state_dict()}
        problem = self.ranks.from_main(self._write_checkpoint(parts, manifest) if self.ranks.is_main else None)
        if problem is None:
            self._saved = (state.epoch, state.step)
            return
        text = f"the checkpoint of step {state.step} could not be saved: {problem}"
        if must:
            raise UserError(f"{text}; earlier checkpoints in {self.run.path} are intact")
        self.run.log(f"warning: {text}; training goes on, earlier checkpoints are intact")

    def _write_checkpoint(self, parts: dict[str, Any], manifest: dict[str, Any]) -> str | None:
        """Writes a checkpoint and removes old ones; returns what went wrong, or None."""
        try:
            path = save_checkpoint(self.run.path, step=self.state.step, **parts, manifest=manifest)
        except OSError as error:
            return str(error)
        self.run.log(f"saved {path.name}", show=False)
        try:
            prune_checkpoints(self.run.path, self.config.train.keep_checkpoints, self.state.best_step, self.state.step)
        except OSError as error:
            self.run.log(f"warning: an old checkpoint could not be removed: {error}")
        return None

    def _draw(self, force: bool) -> None:
        if not self.ranks.is_main or (not force and time.monotonic() - self._curves_drawn < _SECONDS_BETWEEN_CURVES):
            return
        title = f"{self.task.model.model_name} on {self.config.data.dataset}"
        try:
            draw_curves(self.run.read_metrics(), self.run.path / CURVES, title)
        except OSError as error:
            self.run.log(f"warning: {CURVES} could not be written: {error}; training goes on")
        self._curves_drawn = time.monotonic()


def _outputs(result: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The logits of a task's result, without gradients: ``output`` [B, K], and ``exits`` [E, B, K] if there are any."""
    return {key: result[key].detach() for key in ("output", "exits") if key in result}
