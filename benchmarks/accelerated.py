"""How fast are accelerated models on a GPU, compared with timm's in eager mode and compiled?

    python benchmarks/accelerated.py [key=value …] json=benchmarks/results/models-GPU.json

All tables take about an hour, most of it in torch.compile; with ``stop_after=480 resume=true`` each call measures a
part of them. Models with exits are measured with all exits and with early exit. The device's copy bandwidth and GEMM
rate are measured in the same rounds. ``--help`` lists the options.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vitfast.benchmarking.harness import Case
from vitfast.benchmarking.machine import DTYPES, with_limits
from vitfast.benchmarking.model_cases import WEIGHT, forward, logits, model_case, sample_images, seeded_model
from vitfast.benchmarking.peers import Unavailable, compiled, failure, import_peer, timm_model
from vitfast.benchmarking.run import run_tables
from vitfast.benchmarking.run_options import ModelRunOptions, batch_option, seconds_option
from vitfast.benchmarking.table import Table, count_gflop, gigabytes
from vitfast.cli import run_command
from vitfast.config import load_options, option
from vitfast.device import select_device
from vitfast.inference.accelerate import accelerate
from vitfast.inference.early_exit import EarlyExit
from vitfast.models import DVT, ConViT, ImageModel
from vitfast.models.registry import resolve_name

PRECISIONS = ("bf16", "fp16", "fp32")
COMPILE_MODES = ("none", "default", "reduce-overhead", "max-autotune")
MODELS = (
    *("vit_base_patch16_224", "vit_small_patch16_224", "vit_tiny_patch16_224", "vit_large_patch16_224"),
    *("convit_small", "dvt_t2t_vit_12"),
)
# backends of the other models' attention by priority
_ATTENTION_BACKENDS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


@dataclass
class AcceleratedOptions(ModelRunOptions):
    """Compares accelerated models with timm's, eager and compiled."""

    model: list[str] = option(list(MODELS), "one or more models; see vitfast.list_models()")
    batch: list[int] = batch_option(256, 1, 512, 64, 8)  # in the order of measuring
    precision: list[str] = option(["bf16", "fp16"], "type of images and weights, one or more", choices=PRECISIONS)
    compile: str = option(
        "max-autotune", "mode of torch.compile for the other models; none: not compiled", choices=COMPILE_MODES
    )
    seconds: float = seconds_option(300.0)

    def check(self, prefix: str = "") -> None:
        """Checks the options before anything is measured."""
        super().check(prefix)
        for name in self.model:
            resolve_name(name)


def list_tables(options: AcceleratedOptions, device: torch.device) -> list[Table]:
    """The tables, all models at one batch size before the next size."""
    tables = []
    cases = product(options.precision, options.batch, map(resolve_name, options.model))
    for precision, batch, model in dict.fromkeys(cases):
        tables.append(accelerated_table(model, batch, precision, device, options.compile))
        if model.startswith("dvt"):
            tables.append(early_exit_table(model, batch, precision, device))
    return [with_limits(table, device) for table in tables]


def accelerated_table(model_name: str, batch: int, precision: str, device: torch.device, compile_mode: str) -> Table:
    """Compares an accelerated model with timm's, or with the source where timm has none.

    Images and weights have the precision's type. The other models use cuDNN's attention where it supports the shapes.
    """

    def build(table: Table) -> list[Case]:
        torch.compiler.reset()  # models of one class share a limit of recompilations, then run uncompiled
        source = seeded_model(model_name).to(device)
        images = sample_images(source, batch)
        inputs = images.to(DTYPES[precision])
        try:
            library, other = "timm", _timm_model(source)
        except Unavailable:
            library, other = "source", copy.deepcopy(source)
        other.to(inputs.dtype)
        models = {f"{library} eager": _with_attention_backends(other)}
        if compile_mode != "none":
            name, model = f"{library} compiled", _with_attention_backends(compiled(other, mode=compile_mode))
            try:
                forward(model, inputs)  # unsupported models fail only here
                models[name] = model
            except Exception as error:
                table.left_out[name] = failure(error)
        table.reference = logits(source, images)
        table.reference_name = "vitfast's source in fp32"
        table.images = batch
        table.gflop = count_gflop(lambda: forward(source, images))
        weights = [parameter.to(inputs.dtype) for parameter in source.parameters()]
        table.gigabyte = gigabytes([*weights, inputs, table.reference])
        models = {"vitfast": accelerate(source, precision, device), **models}
        return [model_case(name, model, inputs) for name, model in models.items()]

    title = f"{model_name}, batch {batch}, {precision}, accelerated"
    return Table("inference", title, {"model": model_name, "batch": batch}, precision, build, WEIGHT)


def early_exit_table(model_name: str, batch: int, precision: str, device: torch.device) -> Table:
    """Compares early exit where half of the images that reach an exit leave there.

    Rounding may change the exit of an image, so that results are not compared.
    """

    def build(table: Table) -> list[Case]:
        source = seeded_model(model_name).to(device)
        assert isinstance(source, DVT)
        images = sample_images(source, batch)
        thresholds = _halving_thresholds(source, images)
        inputs = images.to(DTYPES[precision])
        converted = copy.deepcopy(source).to(inputs.dtype)
        table.images = batch
        table.gflop = count_gflop(lambda: EarlyExit(source, thresholds)(images))
        table.gigabyte = gigabytes([*converted.parameters(), inputs])
        models = {"vitfast": accelerate(source, precision, device), "source eager": converted}
        return [Case(name, partial(EarlyExit(model, thresholds), inputs)) for name, model in models.items()]

    title = f"{model_name}, batch {batch}, {precision}, half of the images leave at each exit"
    labels = {"model": model_name, "batch": batch, "exits": "half"}
    return Table("inference", title, labels, precision, build, WEIGHT)


def _timm_model(source: ImageModel) -> nn.Module:
    if not isinstance(source, ConViT):
        return timm_model(source)
    other: nn.Module = import_peer("timm").create_model(source.model_name)
    other.load_state_dict(source.state_dict())
    return other.to(next(source.parameters()).device).eval()


def _with_attention_backends(model: Callable[[Tensor], Any]) -> Any:
    def run(images: Tensor) -> Any:
        with sdpa_kernel(_ATTENTION_BACKENDS, set_priority=True) if images.is_cuda else nullcontext():
            return model(images)

    return run


@torch.inference_mode()
def _halving_thresholds(model: DVT, images: Tensor) -> list[float]:
    """Thresholds that half of the images that reach an exit exceed."""
    thresholds, state = [], model.start(images)
    for _ in range(model.num_exits):
        exit_logits, state = model.advance(state)
        confidence = exit_logits.softmax(dim=1).amax(dim=1)
        thresholds.append(float(confidence.median()))
        stay = confidence < thresholds[-1]
        if stay.any():
            state = state.select(stay)
    return thresholds


def main(arguments: Sequence[str]) -> int:
    options = load_options(AcceleratedOptions, list(arguments), "python benchmarks/accelerated.py")
    device = select_device(options.device)
    return run_tables(options, list_tables(options, device), device)[0]


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
