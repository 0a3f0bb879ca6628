"""The training loop."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from vitfast.config.schema import Config
from vitfast.data import create_mixing
from vitfast.engine.checkpoint import load_state, load_weights_file, prune_checkpoints, save_checkpoint
from vitfast.engine.curves import draw_curves
from vitfast.engine.device import autocast, synchronize
from vitfast.engine.evaluator import Evaluation, evaluate
from vitfast.engine.finite_guard import check_finite
from vitfast.engine.progress import Progress
from vitfast.engine.run_directory import CURVES, RunDirectory
from vitfast.engine.stop_signal import StopSignal
from vitfast.engine.training_data import TrainingData
from vitfast.engine.training_state import TrainingState
from vitfast.errors import UserError

_SECONDS_BETWEEN_CURVES = 20.0


class Trainer:
    """Trains a task, measures it after each epoch, and leaves checkpoints from which it goes on bit by bit.

    On the CPU, with the same number of threads, a run that was interrupted anywhere and resumed ends with the same
    weights, average, optimizer state and metrics as one that was not: order and augmentation are functions of (seed,
    epoch, index), and all else is in the checkpoint.

    Args:
        config: of the run.
        state: the task and all that training changes, on ``device``.
        data: the splits.
        run: the folder.
        device: where the task runs.
        show_progress: False: no bar; None: if stderr is a terminal.
    """

    def __init__(
        self,
        config: Config,
        state: TrainingState,
        data: TrainingData,
        run: RunDirectory,
        device: torch.device,
        show_progress: bool | None = None,
    ) -> None:
        self.config, self.state, self.data, self.run, self.device = config, state, data, run, device
        self.task = state.task
        self.show_progress = show_progress
        self.num_classes = len(data.train.class_names)
        self.mixing = create_mixing(config.data.augment, self.num_classes, config.seed)
        self.forward = torch.compile(self.task) if config.train.compile else self.task
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
        state, epochs = self.state, self.config.schedule.epochs
        images = self.data.images_per_epoch
        done = state.epoch * images + min(state.step_in_epoch * self.config.data.batch_size, images)
        with Progress(epochs * images, done, self.show_progress) as progress:
            self.run.echo_through(progress.write)
            while state.epoch < epochs and not stop:
                progress.phase(f"epoch {state.epoch + 1}/{epochs}")
                self._train_epoch(stop, progress)
                if stop or not self._end_epoch(stop):
                    break
            if stop:
                self._save(must=True)
                self._draw(force=True)
                return None
            progress.phase("test")
            return self._test(stop)

    def _train_epoch(self, stop: StopSignal, progress: Progress) -> None:
        state = self.state
        if state.step_in_epoch >= self.data.steps_per_epoch:
            return  # resumed between the last step and the end of the epoch
        loader = self.data.train_loader(state.epoch, state.step_in_epoch)
        self.task.train()
        earlier_seconds, start = state.seconds_in_epoch, time.perf_counter()
        for batch, (images, labels) in enumerate(loader):
            self._train_step(images, labels, loader, batch)
            progress.advance(len(labels))
            last = state.step_in_epoch == self.data.steps_per_epoch
            if state.step % self.config.train.log_every == 0 or last:
                self._report_step(progress)
            if stop:
                break
        synchronize(self.device)
        state.seconds_in_epoch = earlier_seconds + time.perf_counter() - start

    def _train_step(self, images: torch.Tensor, labels: torch.Tensor, loader: Any, batch: int) -> None:
        state, clip = self.state, self.config.optim.clip_grad
        images, labels = images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
        targets = labels
        if self.mixing is not None:
            images, targets = self.mixing(images, labels, epoch=state.epoch, step=state.step_in_epoch)
        loss, output = self._accumulate_gradients(images, targets)
        if clip is None:
            gradients = [parameter.grad for parameter in self.task.parameters() if parameter.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
        else:
            norm = torch.nn.utils.clip_grad_norm_(self.task.parameters(), clip)
        check_finite(
            loss,
            norm,
            step=state.step + 1,
            epoch=state.epoch + 1,
            loader=loader,
            batch_in_loader=batch,
            file_of=self.data.train.path,
            write_down=self.run.write_non_finite,
        )
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.schedule.step()
        if state.average is not None:
            state.average.update_parameters(self.task)
        state.meter.update(loss, output, labels)
        state.step += 1
        state.step_in_epoch += 1

    def _accumulate_gradients(self, images: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds the gradients of a batch, in parts of nearly the same size; returns its mean loss and its output."""
        parts = min(self.config.train.accumulate, len(images))
        losses, outputs = [], []
        for some_images, some_targets in zip(images.tensor_split(parts), targets.tensor_split(parts), strict=True):
            with autocast(self.device, self.config.train.precision):
                result = self.forward(some_images, some_targets)
            loss = result["loss"] * (len(some_images) / len(images))
            loss.backward()
            losses.append(loss.detach())
            outputs.append(result["output"].detach())
        return torch.stack(losses).sum(), torch.cat(outputs)

    def _report_step(self, progress: Progress) -> None:
        figures, state = self.state.meter.compute(), self.state
        progress.show(figures["loss"], figures["top1"])
        self.run.log(
            f"step {state.step}: epoch {state.epoch + 1}, so far loss {figures['loss']:.4f}, "
            f"top-1 {figures['top1']:.2%}, lr {state.learning_rate:.3g}",
            show=False,
        )

    def _end_epoch(self, stop: StopSignal) -> bool:
        """Validates and records an epoch; returns False if it was stopped before that was whole."""
        state = self.state
        speed = state.meter.images / max(state.seconds_in_epoch, 1e-9)
        metrics: dict[str, Any] = {"train": {**state.meter.compute(), "images_per_s": round(speed, 1)}}
        if self.data.val is not None:
            evaluation = self._evaluate(self.data.val, stop)
            if evaluation is None:
                return False
            metrics["val"] = evaluation.metrics()
        is_best = state.finish_epoch(metrics)
        for split, figures in metrics.items():
            self._record(split, figures)
        self.run.log(self._epoch_line(metrics, is_best))
        final = state.epoch == self.config.schedule.epochs
        if is_best or final or state.epoch % self.config.train.checkpoint_every_epochs == 0:
            self._save(must=final)
        self._draw(force=False)
        return True

    def _epoch_line(self, metrics: dict[str, Any], is_best: bool) -> str:
        epochs = self.config.schedule.epochs
        parts = [f"epoch {self.state.epoch:>{len(str(epochs))}}/{epochs}"]
        for split, figures in metrics.items():
            parts.append(f"{split} loss {figures['loss']:.4f} top-1 {figures['top1']:7.2%}")
        parts.append(f"{metrics['train']['images_per_s']:,.0f} images/s")
        return "  ".join(parts) + ("  best" if is_best else "")

    def _evaluate(self, dataset: Any, stop: StopSignal) -> Evaluation | None:
        return evaluate(
            self.state.evaluated_task,
            self.data.evaluation_loader(dataset),
            num_classes=self.num_classes,
            device=self.device,
            precision=self.config.train.precision,
            should_stop=lambda: bool(stop),
        )

    def _test(self, stop: StopSignal) -> dict[str, Any] | None:
        metrics = dict(self.state.metrics)
        if self.data.test is not None:
            evaluation = self._evaluate(self.data.test, stop)
            if evaluation is None:
                return None  # the last checkpoint is saved: resuming tests again
            metrics["test"] = evaluation.metrics()
            self._record("test", metrics["test"])
        self._draw(force=True)
        return metrics

    def _record(self, split: str, figures: dict[str, float]) -> None:
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
        try:
            self.run.append_metrics(line)
        except OSError as error:
            self.run.log(f"warning: metrics.jsonl could not be written: {error}; training goes on")
        else:
            self.state.metrics_lines += 1

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
            "quantization": None,
            "exit_thresholds": None,
        }
        try:
            path = save_checkpoint(
                self.run.path,
                step=state.step,
                model=state.model_state(),
                ema=state.ema_state(),
                state=state.state_dict(),
                manifest=manifest,
            )
        except OSError as error:
            text = f"the checkpoint of step {state.step} could not be saved: {error}"
            if must:
                raise UserError(f"{text}; earlier checkpoints in {self.run.path} are intact") from error
            self.run.log(f"warning: {text}; training goes on, earlier checkpoints are intact")
            return
        self._saved = (state.epoch, state.step)
        self.run.log(f"saved {path.name}", show=False)
        try:
            prune_checkpoints(self.run.path, self.config.train.keep_checkpoints, state.best_step, state.step)
        except OSError as error:
            self.run.log(f"warning: an old checkpoint could not be removed: {error}")

    def _draw(self, force: bool) -> None:
        if not force and time.monotonic() - self._curves_drawn < _SECONDS_BETWEEN_CURVES:
            return
        title = f"{self.task.model.model_name} on {self.config.data.dataset}"
        try:
            draw_curves(self.run.read_metrics(), self.run.path / CURVES, title)
        except OSError as error:
            self.run.log(f"warning: {CURVES} could not be written: {error}; training goes on")
        self._curves_drawn = time.monotonic()
