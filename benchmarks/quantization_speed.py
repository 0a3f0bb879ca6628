"""What does simulated low precision cost in speed, with vitfast's kernels and with QPyTorch's?

    python benchmarks/quantization_speed.py [key=value …] json=benchmarks/results/quantization_speed-MACHINE.json

Inference and a step of quantization-aware training, compared with the same model in float32. ``--help`` lists the
options.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch

from vitfast.benchmarking.harness import Case
from vitfast.benchmarking.model_cases import WEIGHT, TrainingStep, forward, model_case, sample_images, seeded_model
from vitfast.benchmarking.run import run_tables
from vitfast.benchmarking.run_options import RunOptions, batch_option, seconds_option
from vitfast.benchmarking.table import Table, count_gflop
from vitfast.cli import run_command
from vitfast.config import load_options, option
from vitfast.models import ImageModel
from vitfast.quantization.configs import Backend, FP16_16Config, FP16_32Config, QATConfig
from vitfast.quantization.quantize import quantize_

Mode = Literal["inference", "training"]

CONFIGS = {"FP16_32": FP16_32Config, "FP16_16": FP16_16Config}


@dataclass
class QuantizationSpeedOptions(RunOptions):
    """Compares simulated FP16_32 and FP16_16 with float32, with vitfast's rounding and with QPyTorch's."""

    model: str = option("vit_tiny_patch16_224", "the model; see vitfast.list_models()")
    batch: list[int] = batch_option(8)
    seconds: float = seconds_option(120.0)


def quantization_table(model_name: str, batch: int, mode: Mode) -> Table:
    """Compares float32 with each format by vitfast and by QPyTorch.

    Args:
        model_name: one of ``vitfast.list_models()``.
        batch: images per run.
        mode: ``"inference"``: the converted model; ``"training"``: a step of quantization-aware training.
    """

    def build(table: Table) -> list[Case]:
        source = seeded_model(model_name)
        images = sample_images(source, batch)
        models = {"float32": source, **_quantized_models(source, mode, table)}
        table.images = batch
        if mode == "inference":
            cases = [model_case(name, model, images) for name, model in models.items()]
            table.gflop = count_gflop(lambda: forward(source, images))
            table.reference_name = "float32"
        else:
            steps = {name: TrainingStep(model, images, "fp32") for name, model in models.items()}
            cases = [Case(name, run=step, output=step.gradient) for name, step in steps.items()]
            table.gflop = count_gflop(steps["float32"].backward)
            table.reference_name = "the gradient in float32"
        assert cases[0].output is not None
        table.reference = cases[0].output()
        return cases

    what = "inference" if mode == "inference" else "step of quantization-aware training"
    title = f"{model_name}, {what}, batch {batch}"
    return Table(mode, title, {"model": model_name, "batch": batch}, "fp16_32", build, WEIGHT)


def _quantized_models(source: ImageModel, mode: Mode, table: Table) -> dict[str, ImageModel]:
    """Name -> quantized copy of the model."""
    backends: dict[str, Backend] = {"": "vitfast"}
    if importlib.util.find_spec("qtorch") is None:
        table.left_out["QPyTorch"] = "not installed: pip install qtorch"
    else:
        backends[" by QPyTorch"] = "qtorch"
    models = {}
    for (suffix, backend), (name, config) in product(backends.items(), CONFIGS.items()):
        base = config(backend=backend, numerics="qtorch" if backend == "qtorch" else "ieee")
        model = models[name + suffix] = deepcopy(source)
        quantize_(model, base if mode == "inference" else QATConfig(base, step="prepare"))
    return models


def main(arguments: Sequence[str]) -> int:
    options = load_options(QuantizationSpeedOptions, list(arguments), "python benchmarks/quantization_speed.py")
    modes: tuple[Mode, ...] = ("inference", "training")
    batches = dict.fromkeys(options.batch)
    tables = [quantization_table(options.model, batch, mode) for batch in batches for mode in modes]
    return run_tables(options, tables, torch.device("cpu"))[0]


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
