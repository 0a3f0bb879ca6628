"""Whole models: one training step of a batch, vitfast against torchvision and timm."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import torch
from torch import Tensor, nn

from vitfast.benchmarking.agreement import joined
from vitfast.benchmarking.comparison import Comparison, Contest
from vitfast.benchmarking.foreign_model import gradients
from vitfast.benchmarking.model_comparison import WEIGHT, build_models, compiled, sample_images
from vitfast.benchmarking.subject import Subject
from vitfast.benchmarking.work import count_gflop, gigabytes
from vitfast.config import OptimConfig
from vitfast.device import autocast
from vitfast.tasks import ClassificationTask
from vitfast.training.optimizer import create_optimizer

# so small that thousands of steps on one batch change nothing that could change the time
_LEARNING_RATE = 1e-6


def training_comparison(
    model_name: str,
    batch: int,
    precision: str,
    device: torch.device,
    *,
    compile: bool = False,
    libraries: Collection[str] | None = None,
) -> Comparison:
    """The question how long a step takes: forward, cross-entropy, backward and torch's AdamW, the same for all.

    Weights stay fp32; the other precisions run under autocast. What is checked is the gradient of all parameters.

    Args:
        model_name: one of ``vitfast.list_models()``.
        batch: images in a step.
        precision: ``"fp32"`` or ``"bf16"`` (fp16 would need a loss scale).
        device: where it runs.
        compile: also measure each model through ``torch.compile``.
        libraries: whose models are measured beside; None: all.
    """

    def build() -> Contest:
        models, left_out = build_models(model_name, device, libraries)
        images = sample_images(models["vitfast"], batch)
        labels = torch.arange(batch, device=device) % models["vitfast"].num_classes  # type: ignore[operator]
        names = [name for name, _ in models["vitfast"].named_parameters()]
        # the optimizer reads and writes each weight and its two averages
        optimized = 6 * list(models["vitfast"].parameters())
        steps = {name: TrainingStep(model, images, labels, precision) for name, model in models.items()}
        outputs = {
            name: partial(full_gradient, step, names, rename=name == "torchvision") for name, step in steps.items()
        }
        reference_name = next((name for name in models if name != "vitfast"), None)
        reference = None
        if reference_name is not None:
            in_fp32 = TrainingStep(models[reference_name], images, labels, "fp32")
            reference = partial(full_gradient, in_fp32, names, rename=reference_name == "torchvision")
        subjects = [Subject(name, run=step, output=outputs[name]) for name, step in steps.items()]
        if compile:
            subjects += [
                Subject(f"{name} compiled", run=TrainingStep(compiled(model), images, labels, precision))
                for name, model in models.items()
            ]
        return Contest(
            subjects=subjects,
            reference=reference,
            reference_name=f"the gradient of {reference_name} in fp32" if reference_name else "",
            left_out=left_out,
            images=batch,
            gflop=count_gflop(steps["vitfast"].backward),
            gigabyte=gigabytes([*optimized, images]),
        )

    return Comparison(
        mode="training",
        title=f"training step of {model_name}, batch {batch}, {precision}",
        labels={"model": model_name, "batch": batch},
        precision=precision,
        weight=WEIGHT,
        build=build,
    )


class TrainingStep:
    """A training step of one model on one batch."""

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, precision: str) -> None:
        self.model = model.train()
        self._task = ClassificationTask(model)
        self._optimizer = create_optimizer(self._task, OptimConfig(lr=_LEARNING_RATE))
        self._images = images
        self._labels = labels
        self._precision = precision

    def __call__(self) -> None:
        """The whole step."""
        self._optimizer.zero_grad()
        self.backward()
        self._optimizer.step()

    def backward(self) -> None:
        """Forward and backward: the part whose operations are counted."""
        with autocast(self._images.device, self._precision):
            loss = self._task(self._images, self._labels)["loss"]
        loss.backward()


def full_gradient(step: TrainingStep, names: list[str], *, rename: bool = False) -> Tensor:
    """All gradients of one batch as one vector, in the order of vitfast's names; the weights stay as they are."""
    step.model.zero_grad()
    step.backward()
    gradient = joined(gradients(step.model, names, rename=rename))
    step.model.zero_grad()
    return gradient
