"""Fixtures that train tiny models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.tiny_run import TINY_RUN
from support.training_server import TrainingServer
from vitfast.training import training_run
from vitfast.training.trainer import Trainer

TrainTiny = Callable[..., int]


@pytest.fixture(scope="session")
def train_tiny() -> TrainTiny:
    """Runs the train command on a tiny model, in this process.

    ``stop_step=n`` asks for a stop right after n steps, ``stop_in_evaluation=True`` while the first validation runs,
    as SIGTERM would. Curves, which take a quarter of the time, are drawn with ``curves=True``.
    """

    def train(
        run_dir: Path,
        *options: str,
        stop_step: int | None = None,
        stop_in_evaluation: bool = False,
        curves: bool = False,
    ) -> int:
        class StoppingTrainer(Trainer):
            def _draw(self, force):
                if curves:
                    super()._draw(force)

            def fit(self, stop):
                self.stop = stop
                if stop_step == 0:
                    stop.request()
                return super().fit(stop)

            def _train_step(self, *arguments):
                super()._train_step(*arguments)
                if self.state.step == stop_step:
                    self.stop.request()

            def _evaluate(self, dataset):
                if stop_in_evaluation:
                    self.stop.request()
                return super()._evaluate(dataset)

        resume = any(option.startswith("train.resume=") for option in options)
        arguments = list(options) if resume else [*TINY_RUN, f"run_dir={run_dir}", *options]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training_run, "Trainer", StoppingTrainer)
            return training_run.run_training(arguments)

    return train


@pytest.fixture(scope="session")
def training_server() -> Iterator[TrainingServer]:
    """Forks training runs into processes of their own."""
    with TrainingServer() as server:
        yield server
