"""What does token merging save, and what does it cost in accuracy?

    python benchmarks/token_merging.py [key=value …] json=benchmarks/results/token_merging-MACHINE.json
    python benchmarks/token_merging.py run=runs/FOLDER merge_tokens=0,2,4 json=…

GFLOP/s count the operations of each row's own tokens: where they are those of the first row, the time falls as much as
the operations do. With ``run=`` a trained model is measured instead, and the rows also give its top-1 accuracy on
``split``. ``--help`` lists the options.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from vitfast.benchmarking.harness import Case
from vitfast.benchmarking.model_cases import WEIGHT, logits, model_case, sample_images, seeded_model
from vitfast.benchmarking.run import run_tables
from vitfast.benchmarking.run_options import RunOptions, batch_option
from vitfast.benchmarking.table import Table, count_gflop
from vitfast.cli import run_command
from vitfast.config import load_options, option
from vitfast.evaluation.checkpoint_data import EvaluateDataOptions, loader_of_split
from vitfast.evaluation.evaluate import evaluate_model
from vitfast.inference.accelerate import accelerate
from vitfast.inference.ir import PRECISIONS
from vitfast.runs.trained_model import load_trained_model
from vitfast.tasks import create_plain_task


@dataclass(kw_only=True)
class MergingOptions(RunOptions):
    """Compares accelerated models that merge different numbers of tokens."""

    model: list[str] = option(["vit_small_patch16_224", "vit_base_patch16_224"], "models, with random weights")
    merge_tokens: list[int] = option([0, 1, 2, 4, 8, 12, 16], "tokens that each block merges", minimum=0)
    precision: list[str] = option(["fp32"], "precisions of accelerate", choices=list(PRECISIONS["cpu"]))
    batch: list[int] = batch_option(8)
    run: str | None = option(None, "a run's folder: a trained model instead")
    split: str = option("test", "split on which the run's accuracy is measured", choices=["train", "val", "test"])
    data: EvaluateDataOptions = field(default_factory=EvaluateDataOptions)


def merging_table(options: MergingOptions, name: str, batch: int, precision: str) -> Table:
    """Compares the numbers of merged tokens for one model; ``name``: of a model, or a run's folder."""

    def build(table: Table) -> list[Case]:
        trained = None if options.run is None else load_trained_model(name, device=torch.device("cpu"))
        model = seeded_model(name) if trained is None else trained.model.eval()
        loader = None if trained is None else loader_of_split(trained, options.data, options.split)
        images = sample_images(model, batch)
        table.images = batch
        cases = []
        for count in options.merge_tokens:
            fast = accelerate(model, precision, merge_tokens=count)
            gflop = count_gflop(lambda fast=fast: logits(fast, images))
            table.gflop = table.gflop or gflop
            title = f"{count} merged"
            if trained is not None and loader is not None:
                task = type(create_plain_task(model))(fast).eval()
                title += f", top-1 {evaluate_model(trained, loader, task=task).top1:.2%}"
            cases.append(model_case(title, fast, images, gflop))
        return cases

    title = f"{'trained model' if options.run else name}, batch {batch}, {precision}, merging of tokens"
    return Table("inference", title, {"model": name, "batch": batch}, precision, build, WEIGHT)


def main(arguments: Sequence[str]) -> int:
    options = load_options(MergingOptions, list(arguments), "python benchmarks/token_merging.py")
    names = options.model if options.run is None else [options.run]
    tables = [
        merging_table(options, name, batch, precision)
        for name in dict.fromkeys(names)
        for batch in dict.fromkeys(options.batch)
        for precision in dict.fromkeys(options.precision)
    ]
    return run_tables(options, tables, torch.device("cpu"))[0]


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
