"""A quantized model beside the same model in float32, and beside QPyTorch's kernels doing the same rounding."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from vitfast.api import create_model
from vitfast.benchmarking.benchmark_run import measure_and_report
from vitfast.benchmarking.comparison import Comparison, Contest
from vitfast.benchmarking.model_comparison import WEIGHT, inference_subject, sample_images
from vitfast.benchmarking.run_options import RunOptions, seconds_option
from vitfast.benchmarking.subject import Subject
from vitfast.benchmarking.training_comparison import TrainingStep, full_gradient
from vitfast.benchmarking.word_list import parse_counts
from vitfast.benchmarking.work import count_gflop
from vitfast.config import option
from vitfast.models import ImageModel
from vitfast.quantization.configs import Backend, FP16_16Config, FP16_32Config
from vitfast.quantization.qat_config import QATConfig
from vitfast.quantization.quantize import quantize_

Mode = Literal["inference", "training"]

_CONFIGS = {"FP16_32": FP16_32Config, "FP16_16": FP16_16Config}


@dataclass
class QuantizationSpeedOptions(RunOptions):
    """Measures what simulated FP16_32 and FP16_16 cost beside float32, by vitfast's rounding and by QPyTorch's."""

    model: str = option("vit_tiny_patch16_224", "the model; see vitfast.list_models()")
    batch: str = option("8", "images in a batch, one or more sizes: batch=1,8")
    seconds: float = seconds_option(120.0)

    def check(self, prefix: str = "") -> None:
        """As ``RunOptions.check``."""
        super().check(prefix)
        parse_counts("batch", self.batch, minimum=1)


def run_quantization_speed(options: QuantizationSpeedOptions) -> int:
    """Measures what the options ask for; returns the exit code, 1 if a quantized model computes something else."""
    modes: tuple[Mode, ...] = ("inference", "training")
    batches = parse_counts("batch", options.batch, minimum=1)
    comparisons = [quantization_comparison(options.model, batch, mode) for batch in batches for mode in modes]
    return measure_and_report(options, comparisons, torch.device("cpu"))


def quantization_comparison(model_name: str, batch: int, mode: Mode) -> Comparison:
    """The question what rounding costs: float32, and each format by vitfast and by QPyTorch, all in the same rounds.

    Args:
        model_name: one of ``vitfast.list_models()``.
        batch: images in a run.
        mode: ``"inference"``: the converted model; ``"training"``: a step of quantization-aware training.
    """

    def build() -> Contest:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            source = create_model(model_name)
        quantized, left_out = _quantized_models(source, mode)
        models = {"float32": source, **quantized}
        images = sample_images(source, batch)
        subjects, work = (_inference if mode == "inference" else _training)(models, images)
        reference = subjects[0].output
        return Contest(
            subjects=subjects,
            reference=reference,
            reference_name="float32" if mode == "inference" else "the gradient in float32",
            left_out=left_out,
            images=batch,
            gflop=count_gflop(work),
        )

    what = "inference" if mode == "inference" else "step of quantization-aware training"
    return Comparison(
        mode=mode,
        title=f"{model_name}, {what}, batch {batch}",
        labels={"model": model_name, "batch": batch},
        precision="fp16_32",
        weight=WEIGHT,
        build=build,
    )


def _quantized_models(source: ImageModel, mode: Mode) -> tuple[dict[str, ImageModel], dict[str, str]]:
    """Name -> quantized copy of the model; and who cannot take part -> why."""
    backends: dict[str, Backend] = {"": "vitfast"}
    left_out = {}
    if importlib.util.find_spec("qtorch") is None:
        left_out["QPyTorch"] = "not installed: pip install qtorch"
    else:
        backends[" by QPyTorch"] = "qtorch"
    models = {}
    for suffix, backend in backends.items():
        for name, config in _CONFIGS.items():
            base = config(backend=backend, numerics="qtorch" if backend == "qtorch" else "ieee")
            model = models[name + suffix] = deepcopy(source)
            quantize_(model, base if mode == "inference" else QATConfig(base, step="prepare"))
    return models, left_out


def _inference(models: dict[str, ImageModel], images: Tensor) -> tuple[list[Subject], Callable[[], object]]:
    """The subjects, and the work of the first one whose operations are counted."""
    subjects = [inference_subject(name, model.eval(), images) for name, model in models.items()]
    return subjects, subjects[0].run


def _training(models: dict[str, ImageModel], images: Tensor) -> tuple[list[Subject], Callable[[], object]]:
    """As ``_inference``, of training steps; gradients are held against each other."""
    first = next(iter(models.values()))
    labels = torch.arange(len(images)) % first.num_classes
    names = [name for name, _ in first.named_parameters()]
    steps = {name: TrainingStep(model, images, labels, "fp32") for name, model in models.items()}
    subjects = [Subject(name, run=step, output=partial(full_gradient, step, names)) for name, step in steps.items()]
    return subjects, steps["float32"].backward
