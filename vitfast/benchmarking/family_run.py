"""What ``benchmarks/convit.py`` and ``benchmarks/dvt.py`` do: their options, and the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vitfast.benchmarking.benchmark_run import measure_and_report
from vitfast.benchmarking.convit_comparison import convit_comparison
from vitfast.benchmarking.dvt_comparison import dvt_comparison
from vitfast.benchmarking.model_comparison import DTYPES
from vitfast.benchmarking.run_options import ModelRunOptions
from vitfast.config import option
from vitfast.device import select_device


@dataclass
class FamilyOptions(ModelRunOptions):
    """What both have in common."""

    precision: str = option("fp32", "arithmetic and type of the weights", choices=list(DTYPES))


@dataclass
class ConViTOptions(FamilyOptions):
    """Measures ConViT beside timm's and beside DeiT, in interleaved rounds."""

    size: str = option("small", "of both models", choices=["tiny", "small", "base"])


@dataclass
class DVTOptions(FamilyOptions):
    """Measures all exits of a Dynamic Vision Transformer beside the original code, in interleaved rounds."""

    model: str = option("dvt_t2t_vit_12", "the model", choices=["dvt_t2t_vit_12", "dvt_t2t_vit_14"])
    original: str | None = option(
        None, "a checkout of github.com/blackfeather-wang/Dynamic-Vision-Transformer; null: vitfast alone"
    )

    def reported(self) -> dict[str, Any]:
        """All but the folder."""
        return {key: value for key, value in super().reported().items() if key != "original"}


def run_convit_benchmark(options: ConViTOptions) -> int:
    """Measures what the options ask for; returns the exit code, 1 if results disagree with timm's."""
    device = select_device(options.device)
    comparisons = [convit_comparison(options.size, batch, options.precision, device) for batch in options.batches()]
    return measure_and_report(options, comparisons, device)


def run_dvt_benchmark(options: DVTOptions) -> int:
    """Measures what the options ask for; returns the exit code, 1 if results disagree with the original's."""
    device = select_device(options.device)
    comparisons = [
        dvt_comparison(options.model, options.original, batch, options.precision, device) for batch in options.batches()
    ]
    return measure_and_report(options, comparisons, device)
