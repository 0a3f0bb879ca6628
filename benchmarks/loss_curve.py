"""Does a model learn the same with vitfast's kernels as with torch's operators?

    python benchmarks/loss_curve.py [key=value …] json=benchmarks/results/loss_curve-GPU.json

Trains ViT-Tiny for 200 steps on noisy patterns three times: with torch's operators in float32 and under autocast, and
with vitfast's kernels under autocast. As in the operators' tests, the distance of the kernels' loss curve to the
float32 curve may be twice torch's own distance in the same precision, which is the effect of rounding. ``--help``
lists the options.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitfast.benchmarking.machine import describe_machine
from vitfast.benchmarking.run_options import check_json_path
from vitfast.cli import run_command
from vitfast.config import OptimConfig, load_options, option
from vitfast.device import autocast, select_device
from vitfast.errors import UserError
from vitfast.models import ImageModel, build_model
from vitfast.models.registry import resolve_name
from vitfast.ops.library import KERNELS, chosen_kernels, has_kernel
from vitfast.tasks import ClassificationTask
from vitfast.training.optimizer import create_optimizer

NUM_CLASSES = 10
# allowed distance: FACTOR times torch's, plus FLOOR for curves that differ in a few bits only
FACTOR, FLOOR = 2.0, 0.01
# steps of the moving average; the loss of a single batch depends mostly on the batch
WINDOW = 10


@dataclass
class LossCurveOptions:
    """Trains a model with vitfast's kernels and with torch's operators, and compares the loss curves."""

    model: str = option("vit_tiny_patch16_224", "the model; see vitfast.list_models()")
    steps: int = option(200, "training steps", minimum=WINDOW)
    batch: int = option(64, "images per step", minimum=1)
    precision: str = option("bf16", "autocast's type", choices=["bf16", "fp32"])
    lr: float = option(5e-4, "learning rate of AdamW", above=0)
    device: str = option("auto", "auto: a GPU if there is one", choices=["auto", "cpu", "cuda"])
    json: str | None = option(None, "file for the curves as JSON")
    resume: bool = option(False, "do nothing if json= exists")

    def check(self, prefix: str = "") -> None:
        """Checks the options before training.

        Raises:
            UserError: the model is unknown, or the file cannot be written.
        """
        resolve_name(self.model)
        check_json_path(self.json)


def run_loss_curve(options: LossCurveOptions) -> int:
    """Trains three times and prints the verdict; returns the exit code, 1 if the curves disagree."""
    if options.resume and options.json is not None and Path(options.json).exists():
        print(f"{options.json} exists already; delete it to train again")
        return 0
    device = select_device(options.device)
    with chosen_kernels("all", device.type):
        kernels = [kernel for kernel in KERNELS if has_kernel(kernel, device.type)]
    if not kernels:
        raise UserError(f"vitfast has no kernel for {device.type} here, so that both curves would be torch's")
    print(f"vitfast's kernels: {', '.join(kernels)}")
    curves = {
        name: train_curve(options, device, chosen, precision)
        for name, chosen, precision in (
            ("torch fp32", "torch", "fp32"),
            (f"torch {options.precision}", "torch", options.precision),
            (f"vitfast {options.precision}", "all", options.precision),
        )
    }
    verdict = judge(*curves.values())
    for name, curve in curves.items():
        print(f"{name:16} loss {curve[0]:.4f} at first, {smoothed(curve)[-1]:.4f} at last")
    print(
        f"{options.model}, {options.steps} steps: distance to torch fp32: vitfast {verdict['vitfast']:.2e}, "
        f"torch {verdict['torch']:.2e}, allowed {verdict['allowed']:.2e}: "
        + ("the curves agree" if verdict["agrees"] else "the curves DISAGREE")
    )
    if options.json is not None:
        content = {
            "machine": describe_machine(device),
            "options": asdict(options),
            "verdict": verdict,
            "curves": curves,
        }
        Path(options.json).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0 if verdict["agrees"] else 1


def train_curve(options: LossCurveOptions, device: torch.device, kernels: str, precision: str) -> list[float]:
    """Trains from the same weights on the same images; returns the loss of each step.

    Args:
        options: model, steps, batch, learning rate.
        device: where it trains.
        kernels: see ``chosen_kernels``.
        precision: ``"fp32"`` or autocast's type.
    """
    with torch.random.fork_rng(devices=[]), chosen_kernels(kernels, device.type):
        torch.manual_seed(0)
        model = build_model(resolve_name(options.model), num_classes=NUM_CLASSES).to(device).train()
        task = ClassificationTask(model)
        optimizer = create_optimizer(task, OptimConfig(lr=options.lr))
        losses: list[Tensor] = []
        for step in range(options.steps):
            images, labels = sample_batch(model, options.batch, step)
            optimizer.zero_grad()
            with autocast(device, precision):
                loss: Tensor = task(images.to(device), labels.to(device))["loss"]
            loss.backward()
            optimizer.step()
            losses.append(loss.detach().float())
        return [float(loss) for loss in torch.stack(losses).cpu()]


def sample_batch(model: ImageModel, batch: int, step: int) -> tuple[Tensor, Tensor]:
    """Returns images and labels of a step, the same in every run: a coarse pattern per class, plus noise."""
    generator = torch.Generator().manual_seed(1)
    patterns = torch.randn(NUM_CLASSES, model.in_chans, 4, 4, generator=generator)
    generator.manual_seed(2 + step)
    labels = torch.randint(NUM_CLASSES, (batch,), generator=generator)
    size = (model.img_size, model.img_size)
    noise = torch.randn(batch, model.in_chans, *size, generator=generator)
    return torch.nn.functional.interpolate(patterns[labels], size, mode="nearest") + 2 * noise, labels


def judge(reference: list[float], torch_curve: list[float], vitfast_curve: list[float]) -> dict[str, Any]:
    """Compares smoothed curves of one precision with torch's in float32.

    Returns:
        ``torch`` and ``vitfast``: relative L2 distances to the reference; ``allowed``; ``agrees``.
    """
    found = {"torch": distance(torch_curve, reference), "vitfast": distance(vitfast_curve, reference)}
    allowed = FACTOR * found["torch"] + FLOOR
    return {**found, "allowed": allowed, "agrees": found["vitfast"] <= allowed}


def distance(curve: list[float], reference: list[float]) -> float:
    """Relative L2 distance of two smoothed curves; NaN if one is not finite."""
    pairs = list(zip(smoothed(curve), smoothed(reference), strict=True))
    return math.sqrt(sum((one - other) ** 2 for one, other in pairs) / sum(other**2 for _, other in pairs))


def smoothed(curve: list[float]) -> list[float]:
    """Moving average over ``WINDOW`` steps."""
    return [sum(curve[start : start + WINDOW]) / WINDOW for start in range(len(curve) - WINDOW + 1)]


def main(arguments: Sequence[str]) -> int:
    return run_loss_curve(load_options(LossCurveOptions, list(arguments), "python benchmarks/loss_curve.py"))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
