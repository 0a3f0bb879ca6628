"""Fine-tuning: the preprocessing of the initial weights, and a frozen trunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitfast.config.schema import HUB, Config
from vitfast.evaluation.checkpoint_data import is_run
from vitfast.models import ImageModel
from vitfast.weights.checkpoint import resolve_checkpoint
from vitfast.weights.hub import download_pretrained
from vitfast.weights.manifest import read_manifest, require_entries
from vitfast.weights.recorded_preprocessing import recorded_preprocessing


def adopt_preprocessing(config: Config) -> None:
    """Sets the data options that are null to those of the initial weights, with ``finetune.keep_preprocessing``.

    A run records its preprocessing, as do folders of timm and Hugging Face; other files of weights do not.
    """
    model, data = config.model, config.data
    if not config.finetune.keep_preprocessing or model.checkpoint is None:
        return
    settings: dict[str, Any] = {}
    if model.checkpoint == HUB:
        settings = download_pretrained(str(model.name))[1]
    elif is_run(model.checkpoint):
        checkpoint = resolve_checkpoint(model.checkpoint, best=True)
        manifest = read_manifest(checkpoint)
        require_entries(checkpoint, manifest, "data")
        settings = manifest["data"]
    elif Path(model.checkpoint).is_dir():
        settings = recorded_preprocessing(Path(model.checkpoint)) or {}
    if "input_size" in settings:
        settings["in_chans"], settings["img_size"], _ = settings["input_size"]
    for name in ("img_size", "in_chans", "mean", "std", "crop_pct"):
        if getattr(data, name) is None:
            setattr(data, name, settings.get(name))


class FrozenTrunk:
    """All of a model but its heads, which stays fixed in the first epochs.

    Its parameters get no gradients, so that autograd stores none of its activations, and its modules are in evaluation
    mode. Parameters that were fixed before stay fixed.

    Args:
        model: the model that is trained.
        epochs: how many; None: all.
    """

    def __init__(self, model: ImageModel, epochs: int | None) -> None:
        heads = (*model.head_prefixes, "pre_logits.")
        self._epochs = epochs
        self._parameters = [
            parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and not name.startswith(heads)
        ]
        # a module that holds a head keeps its mode: a distilled model returns both logits in training mode only
        self._modules = [
            module
            for name, module in model.named_modules()
            if not f"{name}.".startswith(heads) and not any(head.startswith(f"{name}.") for head in heads) and name
        ]

    def apply(self, epoch: int) -> bool:
        """Freezes or releases the trunk for an epoch, counted from 0; returns whether that changed a parameter."""
        is_frozen = self._epochs is None or epoch < self._epochs
        changed = any(parameter.requires_grad == is_frozen for parameter in self._parameters)
        for parameter in self._parameters:
            parameter.requires_grad_(not is_frozen)
        if is_frozen:
            for module in self._modules:
                module.training = False
        return changed
