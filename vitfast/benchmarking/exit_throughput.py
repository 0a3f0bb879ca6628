"""How many images a second a model with exits answers at given thresholds, measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vitfast.benchmarking.harness import Case, Spread, Timing, create_timer, measure
from vitfast.device import autocast
from vitfast.inference import EarlyExit
from vitfast.models import ImageModel
from vitfast.models.dvt_exit import DVTExit
from vitfast.models.dvt_fields import DVTFields

ALL_EXITS = "all exits"
ALONE = "the last exit's transformer alone"


@dataclass(frozen=True)
class Speed:
    """What was measured of one way to run a model.

    Attributes:
        images_per_s: median and quartiles.
        speedup: how many times faster than all exits, formed round by round.
    """

    images_per_s: Spread
    speedup: Spread


def measure_speeds(
    model: ImageModel,
    images: Tensor,
    points: Sequence[Sequence[float]],
    *,
    batch_size: int,
    precision: str,
    seconds: float,
    alone: bool = False,
) -> dict[str, Speed]:
    """Runs early exit at several thresholds and the model with all exits in interleaved rounds.

    A round answers all images once in each of these ways, in batches that lie on the device already; reading and
    decoding are no part of it. "All exits" is the same model without early exit: every image passes all of them.

    Args:
        model: with exits, in evaluation mode.
        images: ``[n, in_chans, img_size, img_size]``, on the model's device.
        points: thresholds, one list each.
        batch_size: images in a batch; the last may be smaller.
        precision: ``"fp32"``, or ``"bf16"``: autocast.
        seconds: for all rounds together; there are five at least.
        alone: also measure a transformer as the last exit is, on its own: fresh weights, without what it reuses.

    Returns:
        ``ALL_EXITS``, the points by their number from 0 as text, and with ``alone`` the key ``ALONE``.
    """
    batches = images.split(batch_size)
    ways: dict[str, Callable[[Tensor], object]] = {ALL_EXITS: model}
    ways |= {f"{number}": EarlyExit(model, thresholds) for number, thresholds in enumerate(points)}
    if alone:
        ways[ALONE] = _last_exit_alone(model)

    def case(name: str, way: Callable[[Tensor], object]) -> Case:
        def run() -> None:
            with torch.inference_mode(), autocast(images.device, precision):
                for batch in batches:
                    way(batch)

        return Case(name, run)

    cases = [case(name, way) for name, way in ways.items()]
    timings = measure(cases, create_timer(images.device), seconds)
    baseline = timings[0]
    return {one.case.name: _speed(one, baseline, len(images)) for one in timings}


def _speed(one: Timing, baseline: Timing, images: int) -> Speed:
    return Speed(Spread.of([images / sample for sample in one.samples_s]), one.speedup_over(baseline))


def _last_exit_alone(model: ImageModel) -> Callable[[Tensor], object]:
    """A plain transformer on the last exit's tokens: what an image would cost without a cascade."""
    fields = model.fields
    assert isinstance(fields, DVTFields)
    plain = replace(fields, feature_reuse=False, relation_reuse=False)
    parameter = next(model.parameters())
    transformer: nn.Module = DVTExit(plain, fields.num_exits - 1).to(parameter.device, parameter.dtype).eval()
    return lambda batch: transformer(batch, None, (), return_relations=False)
