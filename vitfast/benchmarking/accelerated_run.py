"""What ``benchmarks/accelerated.py`` does: its options, and the run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import product

import torch

from vitfast.benchmarking.accelerated_comparison import accelerated_comparison, early_exit_comparison
from vitfast.benchmarking.benchmark_run import measure_and_report, torch_threads
from vitfast.benchmarking.comparison import Comparison
from vitfast.benchmarking.device_limits import with_limits
from vitfast.benchmarking.options import check_json_path, parse_counts
from vitfast.config import option
from vitfast.engine.device import select_device
from vitfast.errors import UserError
from vitfast.models.registry import resolve_name

PRECISIONS = ("bf16", "fp16", "fp32")
COMPILE_MODES = ("none", "default", "reduce-overhead", "max-autotune")
MODELS = (
    "vit_base_patch16_224,vit_small_patch16_224,vit_tiny_patch16_224,vit_large_patch16_224,convit_small,dvt_t2t_vit_12"
)


@dataclass
class AcceleratedOptions:
    """Measures accelerated models beside timm's, eager and compiled; models with exits with all of them and early exit.

    The device's copy bandwidth and its rate of matrix products are measured in the same rounds.
    """

    model: str = option(MODELS, "one or more models, separated by commas; see vitfast.list_models()")
    batch: str = option("256,1,512,64,8", "images in a batch, one or more sizes, in the order of measuring")
    precision: str = option("bf16,fp16", f"one or more of {', '.join(PRECISIONS)}, separated by commas")
    compile: str = option(
        "max-autotune", "mode of torch.compile for the others; none: they are not compiled", choices=COMPILE_MODES
    )
    seconds: float = option(300.0, "time for all measurements together; building and checking come on top", above=0)
    stop_after: float | None = option(
        None, "seconds after which no comparison begins, building included; resume=true goes on", above=0
    )
    threads: int | None = option(None, "CPU threads; null: torch's choice", minimum=1)
    device: str = option("auto", "auto: a GPU if there is one", choices=["auto", "cpu", "cuda"])
    json: str | None = option(None, "file for the results as JSON; the tables go beside it, as .md")
    resume: bool = option(False, "go on with an interrupted run: keep what json= has, and measure the rest")

    def check(self, prefix: str = "") -> None:
        """Checks what limits cannot say.

        Raises:
            UserError: a model, batch, precision or file is not possible.
        """
        self.models()
        self.precisions()
        parse_counts("batch", self.batch, minimum=1)
        if self.json is not None:
            check_json_path(self.json)

    def models(self) -> list[str]:
        """The models' canonical names.

        Raises:
            UserError: there is no such model.
        """
        return [resolve_name(name.strip()) for name in self.model.split(",")]

    def precisions(self) -> list[str]:
        """The precisions.

        Raises:
            UserError: one is unknown.
        """
        words = [word.strip() for word in self.precision.split(",")]
        for word in words:
            if word not in PRECISIONS:
                raise UserError(f"precision={self.precision}: {word!r} is unknown; allowed: {', '.join(PRECISIONS)}")
        return words


def run_accelerated_benchmark(options: AcceleratedOptions) -> int:
    """Measures what the options ask for; returns the exit code, 1 if results disagree with the source's."""
    device = select_device(options.device)
    with torch_threads(options.threads):
        return measure_and_report(
            list_accelerated_comparisons(options, device),
            device,
            seconds=options.seconds,
            cold_cache=False,
            options=asdict(options),
            json=options.json,
            resume=options.resume,
            stop_after_s=options.stop_after,
        )


def list_accelerated_comparisons(options: AcceleratedOptions, device: torch.device) -> list[Comparison]:
    """The questions, all models at one batch size before the next size."""
    comparisons = []
    mode = None if options.compile == "none" else options.compile
    batches = parse_counts("batch", options.batch, minimum=1)
    for precision, batch, model in product(options.precisions(), batches, options.models()):
        comparisons.append(accelerated_comparison(model, batch, precision, device, compile_mode=mode))
        if model.startswith("dvt"):
            comparisons.append(early_exit_comparison(model, batch, precision, device))
    return [with_limits(comparison, device) for comparison in comparisons]
