"""The cost of quantization: the error of every layer and the top-1 agreement."""

from __future__ import annotations

import copy
import math
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from vitfast.errors import UserError
from vitfast.layers import StoredResult
from vitfast.quantization.calibrate import images_of
from vitfast.quantization.quantize import (
    configurations,
    is_converted,
    prepare,
    quantization_mode,
    quantized_modules,
)
from vitfast.quantization.rounding_losses import RoundingLosses, watch_activations, weight_losses

_LOGITS = "(logits)"  # among the names of modules


@dataclass(frozen=True)
class LayerError:
    """The error of one module's output, and counts of saturated and flushed values.

    ``signal_to_noise_db`` is 10 log10(sum of reference² / sum of (quantized - reference)²) over all images: infinite
    without a difference, NaN if a value is not finite.
    """

    name: str  # of the module; empty for the model itself
    signal_to_noise_db: float
    activations: RoundingLosses = field(default_factory=RoundingLosses)  # rounded operands and results of all images
    weights: RoundingLosses = field(default_factory=RoundingLosses)


@dataclass(frozen=True)
class QuantizationReport:
    """The result of ``quantization_report``.

    Attributes:
        layers: every quantized module, and every module that contains one, that returns one tensor, in the model's
            order. Errors accumulate: each model runs on its own activations.
        output: the logits.
        top1_agreement: share of predictions with the same top-1 class in both models, 0 to 1. An image has one, or
            one per token for outputs ``[B, N, C]``.
        num_images: number of images.
    """

    layers: tuple[LayerError, ...]
    output: LayerError
    top1_agreement: float
    num_images: int

    def worst(self, count: int = 5) -> tuple[LayerError, ...]:
        """Returns the layers with the lowest signal-to-noise ratios, the worst first."""

        def rank(layer: LayerError) -> tuple[bool, float]:
            return not math.isnan(layer.signal_to_noise_db), layer.signal_to_noise_db

        return tuple(sorted(self.layers, key=rank)[:count])

    def __str__(self) -> str:
        lines = [
            f"{self.num_images} images: top-1 agreement {self.top1_agreement:.2%}, "
            f"logits {self.output.signal_to_noise_db:.1f} dB",
            *(f"{layer.signal_to_noise_db:8.1f} dB  {layer.name or '(model)'}" for layer in self.worst(10)),
        ]
        return "\n".join(lines)


def quantization_report(
    model: nn.Module, loader: Iterable[Any], *, batches: int | None = None, reference: nn.Module | None = None
) -> QuantizationReport:
    """Compares a quantized model with the unquantized one, in evaluation mode.

    Args:
        model: quantized; not changed.
        loader: yields images ``[B, C, height, width]``, or tuples or lists that begin with them.
        batches: number of batches used; None for all.
        reference: the unquantized model; required if ``model`` is converted, because its weights are rounded.

    Raises:
        UserError: the model is not quantized, or converted without a reference; ``reference`` is quantized or has other
            modules; the loader is empty.
    """
    quantized = quantized_modules(model)
    if reference is None:
        if is_converted(model):
            raise UserError(
                "the weights of a converted model are rounded; give the unquantized model as reference=, a "
                "copy.deepcopy from before quantize_"
            )
        unrounded = copy.deepcopy(model)
    else:
        unrounded = copy.deepcopy(reference)
        missing = sorted(quantized.keys() - dict(reference.named_modules()).keys())
        if missing:
            raise UserError(f"reference is another model: it has no {', '.join(missing[:3])}")
        prepare(unrounded, configurations(model), warn=False)
    candidate = copy.deepcopy(model).eval()
    with quantization_mode(candidate, "quantized"), quantization_mode(unrounded.eval(), "plain"), torch.no_grad():
        return _compare(candidate, unrounded, loader, batches)


def _keep_outputs(model: nn.Module) -> dict[str, Tensor]:
    """Returns a dictionary that will hold the last output of every compared module."""
    kept: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        output = output[0] if isinstance(output, tuple) and output else output
        if isinstance(output, Tensor):
            kept[name] = output

    for name, module in _observed_modules(model).items():
        module.register_forward_hook(partial(keep, name))
    return kept


def _compare(
    candidate: nn.Module, reference: nn.Module, loader: Iterable[Any], batches: int | None
) -> QuantizationReport:
    outputs, reference_outputs = _keep_outputs(candidate), _keep_outputs(reference)
    weights, activations = weight_losses(candidate, reference), watch_activations(candidate)
    energies: dict[str, Tensor] = {}
    agreeing = predictions = num_images = 0
    for batch in islice(loader, batches):
        images = images_of(batch, candidate)
        logits, reference_logits = _logits(candidate(images)), _logits(reference(images))
        outputs[_LOGITS], reference_outputs[_LOGITS] = logits, reference_logits
        for name, expected in reference_outputs.items():
            energies[name] = energies.get(name, 0.0) + _energy(outputs[name], expected)
        agrees = logits.argmax(-1) == reference_logits.argmax(-1)
        agreeing, predictions = agreeing + int(agrees.sum()), predictions + agrees.numel()
        num_images += len(images)
    if not num_images:
        raise UserError("loader yields no images to compare with")
    layers = {
        name: LayerError(name, _decibels(energies[name])) for name in _observed_modules(candidate) if name in energies
    }
    for name in activations:
        layer = layers.get(_shown_as(name, layers))
        if layer is not None:
            layer.activations.add(activations[name])
            layer.weights.add(weights[name])
    return QuantizationReport(
        layers=tuple(layers.values()),
        output=LayerError("", _decibels(energies[_LOGITS])),
        top1_agreement=agreeing / max(predictions, 1),
        num_images=num_images,
    )


def _observed_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Returns the quantized modules and the modules that contain them, whose outputs are compared.

    A stored result is compared as the output of the module that contains it.
    """
    quantized = quantized_modules(model)
    return {
        name: module
        for name, module in model.named_modules()
        if any(other == name or other.startswith(f"{name}." if name else "") for other in quantized)
        and not isinstance(module, (StoredResult, nn.Sequential, nn.ModuleList))
    }


def _logits(answer: Any) -> Tensor:
    """Returns the logits: those of the last exit, or the attribute ``logits`` of Hugging Face's outputs."""
    named = getattr(answer, "logits", answer)
    return named if isinstance(named, Tensor) else named[-1]


def _shown_as(name: str, layers: Container[str]) -> str:
    """Returns ``name``, or the nearest module around it whose output is compared.

    The forward of a patch embedding's convolution is not called, and stored results have no rows.
    """
    while name and name not in layers:
        name = name.rpartition(".")[0]
    return name


def _energy(actual: Tensor, expected: Tensor) -> Tensor:
    """Returns the energies of signal and noise."""
    exact = expected.double()
    return torch.stack([exact.square().sum(), (actual.double() - exact).square().sum()]).cpu()


def _decibels(energy: Tensor) -> float:
    signal, noise = energy.tolist()
    if math.isnan(signal) or math.isnan(noise) or math.isinf(signal):
        return math.nan
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal and math.isfinite(noise) else -math.inf
