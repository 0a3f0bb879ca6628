"""Whole models: vitfast, torchvision and timm in inference and training, and accelerated models and CPU engines."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vitfast.api import create_model
from vitfast.benchmarking.harness import Case
from vitfast.benchmarking.machine import DTYPES, arithmetic_peak
from vitfast.benchmarking.peers import Unavailable, compiled, gradients, prepare_peer, timm_model, torchvision_model
from vitfast.benchmarking.table import Table, count_gflop, gigabytes, joined
from vitfast.device import autocast
from vitfast.inference.accelerate import accelerate
from vitfast.models import ImageModel
from vitfast.tasks import ClassificationTask

# share of the time, relative to an operator
WEIGHT = 4.0

# the first library that is available is the reference
_LIBRARIES = {"torchvision": torchvision_model, "timm": timm_model}

# too small for thousands of steps on one batch to change values in a way that affects the time
_LEARNING_RATE = 1e-6


def inference_table(
    model_name: str,
    batch: int,
    precision: str,
    device: torch.device,
    *,
    compile: bool = False,
    libraries: Collection[str] = tuple(_LIBRARIES),
) -> Table:
    """Compares the forward pass of each library's model in evaluation mode, with ``compile`` also compiled.

    Inputs and weights have the type of ``precision``, a key of ``DTYPES``.
    """

    def build(table: Table) -> list[Case]:
        torch.compiler.reset()  # see engine_table
        models, table.left_out = build_models(model_name, device, libraries)
        images = sample_images(models["vitfast"], batch)
        reference_name = next((name for name in models if name != "vitfast"), None)
        if reference_name is not None:
            table.reference = logits(models[reference_name].eval(), images)
            table.reference_name = f"{reference_name} in fp32"
        for model in models.values():
            model.eval().to(DTYPES[precision])
        inputs = images.to(DTYPES[precision])
        table.images = batch
        table.gflop = count_gflop(lambda: forward(models["vitfast"], inputs))
        compiled_models = {f"{name} compiled": compiled(model) for name, model in models.items()} if compile else {}
        return [model_case(name, model, inputs) for name, model in {**models, **compiled_models}.items()]

    title = f"{model_name}, batch {batch}, {precision}"
    return Table("inference", title, {"model": model_name, "batch": batch}, precision, build, WEIGHT)


def training_table(
    model_name: str,
    batch: int,
    precision: str,
    device: torch.device,
    *,
    compile: bool = False,
    libraries: Collection[str] = tuple(_LIBRARIES),
) -> Table:
    """Compares a training step: forward, cross-entropy, backward and torch's AdamW, the same for all libraries.

    Weights stay in fp32, and ``precision`` ``"bf16"`` runs under autocast (``"fp16"`` would need a loss scale). The
    gradient of all parameters is checked.
    """

    def build(table: Table) -> list[Case]:
        torch.compiler.reset()  # see engine_table
        models, table.left_out = build_models(model_name, device, libraries)
        source = models["vitfast"]
        images = sample_images(source, batch)
        names = [name for name, _ in source.named_parameters()]
        steps = {name: TrainingStep(model, images, precision) for name, model in models.items()}
        reference_name = next((name for name in models if name != "vitfast"), None)
        if reference_name is not None:
            table.reference = full_gradient(TrainingStep(models[reference_name], images, "fp32"), names)
            table.reference_name = f"the gradient of {reference_name} in fp32"
        table.images = batch
        table.gflop = count_gflop(steps["vitfast"].backward)
        # the optimizer reads and writes each weight and its two averages
        table.gigabyte = gigabytes([*6 * list(source.parameters()), images])
        cases = [Case(name, run=step, output=partial(full_gradient, step, names)) for name, step in steps.items()]
        if compile:
            cases += [
                Case(f"{name} compiled", run=TrainingStep(compiled(model), images, precision))
                for name, model in models.items()
            ]
        return cases

    title = f"training step of {model_name}, batch {batch}, {precision}"
    return Table("training", title, {"model": model_name, "batch": batch}, precision, build, WEIGHT)


def engine_table(model_name: str, batch: int, precision: str, peers: Collection[str]) -> Table:
    """Compares an accelerated model with other engines on the CPU; images and logits are in fp32.

    Other engines run timm's model with the same weights if timm has it, else vitfast's. The arithmetic peak is measured
    in the same rounds. GFLOP/s count the operations of the accelerated model for vitfast, of the source for the others.
    """

    def build(table: Table) -> list[Case]:
        torch.compiler.reset()  # models of one class share a limit of recompilations, then run uncompiled
        source = seeded_model(model_name)
        images = sample_images(source, batch)
        fast = accelerate(source, precision)
        try:
            other = timm_model(source)
        except Unavailable:
            other = source
        cases = [model_case("vitfast", fast, images, count_gflop(lambda: forward(fast, images)))]
        for name in peers:
            try:
                run = prepare_peer(name, other, images, precision)
            except Unavailable as reason:
                table.left_out[name] = str(reason)
            else:
                cases.append(Case(name, run, output=lambda run=run: as_tensor(run())))  # type: ignore[misc]
        peak = arithmetic_peak(precision)
        table.reference = logits(source, images)
        table.reference_name = "vitfast's source in fp32"
        table.images = batch
        table.gflop = count_gflop(lambda: forward(source, images))
        return cases if peak is None else [*cases, peak]

    title = f"{model_name}, batch {batch}, {precision}, engines"
    return Table("engines", title, {"model": model_name, "batch": batch}, precision, build, 2 * WEIGHT)


class TrainingStep:
    """A training step of one model on one batch of ``images``."""

    def __init__(self, model: nn.Module, images: Tensor, precision: str) -> None:
        self.model = model.train()
        self._task = ClassificationTask(model)
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(learning, lr=_LEARNING_RATE, fused=True)
        self._images = images
        self._labels = torch.arange(len(images), device=images.device) % 10
        self._precision = precision

    def __call__(self) -> None:
        """Runs the whole step."""
        self._optimizer.zero_grad()
        self.backward()
        self._optimizer.step()

    def backward(self) -> None:
        """Runs forward and backward, whose operations are counted."""
        with autocast(self._images.device, self._precision):
            loss = self._task(self._images, self._labels)["loss"]
        loss.backward()


def full_gradient(step: TrainingStep, names: Sequence[str]) -> Tensor:
    """All gradients of one step as one vector, in the order of vitfast's names; the weights do not change."""
    step.model.zero_grad()
    step.backward()
    gradient = joined(gradients(step.model, names))
    step.model.zero_grad()
    return gradient


def seeded_model(model_name: str) -> ImageModel:
    """Builds a model in evaluation mode with the same random weights in every run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_model(model_name).eval()


def build_models(
    model_name: str, device: torch.device, libraries: Collection[str] = tuple(_LIBRARIES)
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Builds the model of each library with the same random weights, in fp32 and in training mode.

    Returns:
        Library -> model, vitfast first; and library -> the reason why it has no such model.
    """
    source = seeded_model(model_name).to(device).train()
    models: dict[str, nn.Module] = {"vitfast": source}
    left_out = {}
    with torch.random.fork_rng(devices=[]):  # the other libraries initialize their weights, too
        for name in filter(libraries.__contains__, _LIBRARIES):
            try:
                models[name] = _LIBRARIES[name](source)
            except Unavailable as error:
                left_out[name] = str(error)
    return models, left_out


def sample_images(model: nn.Module, batch: int) -> Tensor:
    """Random images ``[B, C, H, W]`` in fp32 for a vitfast model, the same in every run."""
    assert isinstance(model, ImageModel)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, model.in_chans, model.img_size, model.img_size, generator=generator)
    return images.to(next(model.parameters()).device)


def model_case(name: str, model: nn.Module, images: Tensor, gflop: float | None = None) -> Case:
    """A forward pass of a model, checked by its logits."""
    return Case(name, run=partial(forward, model, images), output=partial(logits, model, images), gflop=gflop)


def forward(model: nn.Module, images: Tensor) -> Any:
    """The model's output in inference mode."""
    with torch.inference_mode():
        return model(images)


def logits(model: nn.Module, images: Tensor) -> Tensor:
    """The model's logits; those of several exits as one vector."""
    return as_tensor(forward(model, images))


def as_tensor(output: Any) -> Tensor:
    """The output itself, or several joined into one vector."""
    return output if isinstance(output, Tensor) else joined(output)
