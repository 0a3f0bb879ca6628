"""Whole models: vitfast, torchvision and timm in inference and training, and accelerated models and CPU engines."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitfast.api import create_model
from vitfast.benchmarking.engine_process import EngineProcess
from vitfast.benchmarking.engines import ENGINES, Configuration, accelerated
from vitfast.benchmarking.harness import Case
from vitfast.benchmarking.machine import DTYPES, arithmetic_peak
from vitfast.benchmarking.peers import Unavailable, compiled, parameters_by_name, timm_model, torchvision_model
from vitfast.benchmarking.table import Table, count_gflop, gigabytes, joined
from vitfast.device import autocast
from vitfast.inference.accelerate import accelerate
from vitfast.models import ImageModel
from vitfast.tasks import ClassificationTask

# share of the time, relative to an operator
WEIGHT = 4.0
# of the configurations of an engine, of which only the fastest is compared further
QUALIFYING_ROUNDS = 2

# the first library that is available is the reference
_LIBRARIES = {"torchvision": torchvision_model, "timm": timm_model}


def model_table(
    mode: Literal["inference", "training"],
    model_name: str,
    batch: int,
    precision: str,
    device: torch.device,
    *,
    compile: bool = False,
    libraries: Collection[str] = tuple(_LIBRARIES),
) -> Table:
    """Compares the libraries' models; with ``compile`` also compiled.

    ``"inference"`` is the forward pass in evaluation mode; inputs and weights have the type of ``precision``.
    ``"training"`` is a step: forward, cross-entropy, backward and torch's AdamW. Weights stay in fp32, and
    ``precision`` ``"bf16"`` runs under autocast (``"fp16"`` would need a loss scale). The gradient of all parameters is
    checked.
    """
    make_case = _inference_case if mode == "inference" else _training_case
    title = f"{model_name}, batch {batch}, {precision}"

    def build(table: Table) -> list[Case]:
        torch.compiler.reset()  # see engine_table
        models, table.left_out = build_models(model_name, device, libraries)
        images = sample_images(models["vitfast"], batch)
        library = next((name for name in models if name != "vitfast"), None)
        if library is not None:
            reference = make_case(library, models[library], images, "fp32")
            assert reference.output is not None
            table.reference = reference.output()
            table.reference_name = f"{library} in fp32" if mode == "inference" else f"the gradient of {library} in fp32"
        cases = [make_case(name, model, images, precision) for name, model in models.items()]
        assert cases[0].output is not None
        table.images, table.gflop = batch, count_gflop(cases[0].output)
        if mode == "training":  # the optimizer reads and writes each weight and its two averages
            table.gigabyte = gigabytes([*6 * list(models["vitfast"].parameters()), images])
        for name, model in models.items() if compile else ():
            cases.append(make_case(f"{name} compiled", compiled(model), images, precision))
        return cases

    return Table(
        mode,
        title if mode == "inference" else f"training step of {title}",
        {"model": model_name, "batch": batch},
        precision,
        build,
        WEIGHT,
    )


def _inference_case(name: str, model: nn.Module, images: Tensor, precision: str) -> Case:
    dtype = DTYPES[precision]
    return model_case(name, model.eval().to(dtype), images.to(dtype))


def _training_case(name: str, model: nn.Module, images: Tensor, precision: str) -> Case:
    step = TrainingStep(model, images, precision)
    return Case(name, step, output=step.gradient)


def engine_table(model_name: str, batch: int, precision: str, engines: Collection[str]) -> Table:
    """Compares an accelerated model with other engines on the CPU; images and logits are in fp32.

    Other engines run timm's model with the same weights if timm has it, else vitfast's. The arithmetic peak is measured
    in the same rounds. GFLOP/s count the operations of the accelerated model for vitfast, of the source for the others.
    """

    def build(table: Table) -> list[Case]:
        source = seeded_model(model_name)
        try:
            other = timm_model(source)
        except Unavailable:
            other = source
        table.reference_name = "vitfast's source in fp32"
        return engine_cases(table, source, other, accelerate(source, precision), sample_images(source, batch), engines)

    title = f"{model_name}, batch {batch}, {precision}, engines"
    return Table("engines", title, {"model": model_name, "batch": batch}, precision, build, 2 * WEIGHT)


def engine_cases(
    table: Table, source: nn.Module, other: nn.Module, fast: nn.Module, images: Tensor, engines: Collection[str]
) -> list[Case]:
    """The cases of a table that compares an accelerated model with other engines, each in a process of its own.

    Sets the table's reference. Of each engine the fastest configuration is compared.

    Args:
        table: the table.
        source: the source model, which returns a tensor; it is the reference.
        other: the model that the other engines run.
        fast: the accelerated model.
        images: ``[B, C, H, W]``.
        engines: names of other engines.
    """
    folder = Path(table.processes.enter_context(TemporaryDirectory()))
    torch.save((fast, images), folder / "fast.pt")
    torch.save((other, images), folder / "other.pt")
    gflop = count_gflop(lambda: forward(fast, images))
    table.reference = logits(source, images)
    table.images, table.gflop = len(images), count_gflop(lambda: forward(source, images))
    cases = [
        _engine_case(table, "vitfast", {"": Configuration(accelerated, (table.precision,))}, folder / "fast.pt", gflop)
    ]
    cases += [_engine_case(table, name, ENGINES[name], folder / "other.pt") for name in engines]
    return [case for case in [*cases, arithmetic_peak(table.precision)] if case is not None]


def _engine_case(
    table: Table, name: str, configurations: dict[str, Configuration], file: Path, gflop: float | None = None
) -> Case | None:
    """Runs every configuration of an engine; keeps the process of the fastest, or returns None if none can run."""
    processes, failures = {}, {}
    for label, configuration in configurations.items():
        try:
            configuration.check(table.precision)
            process = EngineProcess(configuration.engine, file, table.precision, file.parent)
        except Unavailable as error:
            failures[label] = str(error)
        else:
            processes[label] = table.processes.enter_context(closing(process))
    if not processes:
        table.left_out[name] = "; ".join(dict.fromkeys(failures.values()))
        return None
    for label, reason in failures.items():
        if reason.startswith("failed"):
            table.left_out[f"{name} ({label})"] = reason
    best = next(iter(processes))
    if len(processes) > 1:
        rounds = [{label: one.time(1)[0] for label, one in processes.items()} for _ in range(QUALIFYING_ROUNDS)]
        times_ms = {label: 1e3 * min(durations_s[label] for durations_s in rounds) for label in processes}
        table.configurations[name] = times_ms
        best = min(times_ms, key=lambda label: times_ms[label])
        for label in processes.keys() - {best}:
            processes[label].close()
    process = processes[best]
    return Case(name, lambda: process.time(1), lambda: process.logits, gflop=gflop, times=process.time)


class TrainingStep:
    """A training step of one model on one batch of ``images``."""

    def __init__(self, model: nn.Module, images: Tensor, precision: str) -> None:
        self.model = model.train()
        self._task = ClassificationTask(model)
        # too small for thousands of steps on one batch to change values in a way that affects the time
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
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

    def gradient(self) -> Tensor:
        """All gradients of one step as one vector, in the order of vitfast's names; the weights do not change."""
        self.model.zero_grad()
        self.backward()
        parameters = sorted(parameters_by_name(self.model).items())
        gradient = joined(torch.zeros_like(one) if one.grad is None else one.grad for _, one in parameters)
        self.model.zero_grad()
        return gradient


def seeded_model(model_name: str) -> ImageModel:
    """Builds a model in evaluation mode with the same random weights in every run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_model(model_name).eval()


def build_models(
    model_name: str, device: torch.device, libraries: Collection[str] = tuple(_LIBRARIES)
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Builds each library's model with the same random weights; also returns why a library has no such model."""
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
