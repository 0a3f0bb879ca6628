"""What ``benchmarks/convit.py`` and ``benchmarks/dvt.py`` do: their options, and the run."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from vitfast.benchmarking.benchmark_run import measure_and_report, torch_threads
from vitfast.benchmarking.comparison import Comparison
from vitfast.benchmarking.convit_comparison import convit_comparison
from vitfast.benchmarking.dvt_comparison import dvt_comparison
from vitfast.benchmarking.model_comparison import DTYPES
from vitfast.benchmarking.options import check_json_path, parse_counts
from vitfast.config import option
from vitfast.engine.device import select_device


@dataclass
class FamilyOptions:
    """What both have in common."""

    batch: str = option("8", "images in a batch, one or more sizes: batch=1,8")
    precision: str = option("fp32", "arithmetic and type of the weights", choices=list(DTYPES))
    seconds: float = option(60.0, "time for all measurements together; building and checking come on top", above=0)
    threads: int | None = option(None, "CPU threads; null: torch's choice", minimum=1)
    device: str = option("auto", "auto: a GPU if there is one", choices=["auto", "cpu", "cuda"])
    json: str | None = option(None, "file for the results as JSON; the tables go beside it, as .md")

    def check(self, prefix: str = "") -> None:
        """Checks what limits cannot say.

        Raises:
            UserError: batch is no list of numbers, or the results cannot be written.
        """
        parse_counts("batch", self.batch, minimum=1)
        if self.json is not None:
            check_json_path(self.json)


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


def run_convit_benchmark(options: ConViTOptions) -> int:
    """Measures what the options ask for; returns the exit code, 1 if results disagree with timm's."""
    device = select_device(options.device)
    batches = parse_counts("batch", options.batch, minimum=1)
    return _run(options, [convit_comparison(options.size, batch, options.precision, device) for batch in batches])


def run_dvt_benchmark(options: DVTOptions) -> int:
    """Measures what the options ask for; returns the exit code, 1 if results disagree with the original's."""
    device = select_device(options.device)
    batches = parse_counts("batch", options.batch, minimum=1)
    return _run(
        options,
        [dvt_comparison(options.model, options.original, batch, options.precision, device) for batch in batches],
    )


def _run(options: FamilyOptions, comparisons: list[Comparison]) -> int:
    with torch_threads(options.threads):
        return measure_and_report(
            comparisons,
            select_device(options.device),
            seconds=options.seconds,
            cold_cache=False,
            options={key: value for key, value in asdict(options).items() if key != "original"},
            json=options.json,
        )
