"""The options of all commands that load a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vitfast.config import option
from vitfast.device import select_device
from vitfast.runs.trained_model import WEIGHTS, TrainedModel, load_trained_model


@dataclass(kw_only=True)
class CheckpointOptions:
    """The checkpoint to load, and where it runs."""

    checkpoint: str = option(help="folder of a run (its newest checkpoint) or of a checkpoint")
    weights: str = option("auto", "auto: averaged weights (EMA) if available", choices=WEIGHTS)
    device: str = option("auto", "auto: the GPU if there is one", choices=["auto", "cpu", "cuda"])
    threads: int | None = option(None, "CPU threads; null: torch's choice", minimum=1)

    def load(self) -> TrainedModel:
        """Loads the checkpoint's model onto the device, and sets the number of CPU threads."""
        return load_trained_model(self.checkpoint, weights=self.weights, device=self.prepare_device())

    def prepare_device(self) -> torch.device:
        """Returns the device, and sets the number of CPU threads."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        return select_device(self.device)
