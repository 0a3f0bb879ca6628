"""What ``benchmarks/accelerated.py`` does: its options, and the run."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch

from vitfast.benchmarking.accelerated_comparison import accelerated_comparison, early_exit_comparison
from vitfast.benchmarking.benchmark_run import measure_and_report
from vitfast.benchmarking.comparison import Comparison
from vitfast.benchmarking.device_limits import with_limits
from vitfast.benchmarking.run_options import ModelRunOptions, seconds_option
from vitfast.benchmarking.word_list import known_models, known_words
from vitfast.config import option
from vitfast.device import select_device

PRECISIONS = ("bf16", "fp16", "fp32")
COMPILE_MODES = ("none", "default", "reduce-overhead", "max-autotune")
MODELS = (
    "vit_base_patch16_224,vit_small_patch16_224,vit_tiny_patch16_224,vit_large_patch16_224,convit_small,dvt_t2t_vit_12"
)


@dataclass
class AcceleratedOptions(ModelRunOptions):
    """Measures accelerated models beside timm's, eager and compiled; models with exits with all of them and early exit.

    The device's copy bandwidth and its rate of matrix products are measured in the same rounds.
    """

    model: str = option(MODELS, "one or more models, separated by commas; see vitfast.list_models()")
    batch: str = option("256,1,512,64,8", "images in a batch, one or more sizes, in the order of measuring")
    precision: str = option("bf16,fp16", f"one or more of {', '.join(PRECISIONS)}, separated by commas")
    compile: str = option(
        "max-autotune", "mode of torch.compile for the others; none: they are not compiled", choices=COMPILE_MODES
    )
    seconds: float = seconds_option(300.0)

    def check(self, prefix: str = "") -> None:
        """As ``RunOptions.check``."""
        super().check(prefix)
        self.models()
        self.precisions()

    def models(self) -> list[str]:
        """The models' canonical names.

        Raises:
            UserError: there is no such model.
        """
        return known_models(self.model)

    def precisions(self) -> list[str]:
        """The precisions.

        Raises:
            UserError: one is unknown.
        """
        return known_words("precision", self.precision, PRECISIONS)


def run_accelerated_benchmark(options: AcceleratedOptions) -> int:
    """Measures what the options ask for; returns the exit code, 1 if results disagree with the source's."""
    device = select_device(options.device)
    return measure_and_report(options, list_accelerated_comparisons(options, device), device)


def list_accelerated_comparisons(options: AcceleratedOptions, device: torch.device) -> list[Comparison]:
    """The questions, all models at one batch size before the next size."""
    comparisons = []
    mode = None if options.compile == "none" else options.compile
    for precision, batch, model in product(options.precisions(), options.batches(), options.models()):
        comparisons.append(accelerated_comparison(model, batch, precision, device, compile_mode=mode))
        if model.startswith("dvt"):
            comparisons.append(early_exit_comparison(model, batch, precision, device))
    return [with_limits(comparison, device) for comparison in comparisons]
