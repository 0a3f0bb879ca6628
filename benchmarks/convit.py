"""What does gated positional attention cost: ConViT compared with timm's, and with the DeiT of the same size?

    python benchmarks/convit.py [key=value …] json=benchmarks/results/convit-MACHINE.json

The speed of a row is relative to the fastest other one, the DeiT: ``0.80x`` is 1.25 times its time. ``--help`` lists
the options.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from vitfast.benchmarking.harness import Case
from vitfast.benchmarking.machine import DTYPES
from vitfast.benchmarking.model_cases import WEIGHT, forward, logits, model_case, sample_images, seeded_model
from vitfast.benchmarking.peers import Unavailable, import_peer
from vitfast.benchmarking.run import run_tables
from vitfast.benchmarking.run_options import ModelRunOptions
from vitfast.benchmarking.table import Table
from vitfast.cli import run_command
from vitfast.config import load_options, option
from vitfast.device import select_device


@dataclass
class ConViTOptions(ModelRunOptions):
    """Compares ConViT with timm's and with DeiT."""

    precision: str = option("fp32", "arithmetic and type of the weights", choices=list(DTYPES))
    size: str = option("small", "size of both models", choices=["tiny", "small", "base"])


def convit_table(size: str, batch: int, precision: str, device: torch.device) -> Table:
    """Compares the ConViTs of vitfast and timm and vitfast's DeiT."""

    def build(table: Table) -> list[Case]:
        convit, deit = (seeded_model(name).to(device) for name in (f"convit_{size}", f"deit_{size}_patch16_224"))
        images = sample_images(convit, batch)
        models: dict[str, nn.Module] = {"vitfast ConViT": convit}
        try:
            timm = import_peer("timm")
        except Unavailable as error:
            table.left_out["timm ConViT"] = str(error)
        else:
            other = timm.create_model(f"convit_{size}")
            other.load_state_dict(convit.state_dict())
            models["timm ConViT"] = other.to(device).eval()
            table.reference = logits(other, images)
            table.reference_name = "timm in fp32"
        table.images = batch  # no gflop: the DeiT's differ
        inputs = images.to(DTYPES[precision])
        for model in (*models.values(), deit):
            model.to(inputs.dtype)
        cases = [model_case(name, model, inputs) for name, model in models.items()]
        return [*cases, Case("vitfast DeiT", partial(forward, deit, inputs))]

    title = f"convit_{size} beside deit_{size}_patch16_224, batch {batch}, {precision}"
    return Table("inference", title, {"model": f"convit_{size}", "batch": batch}, precision, build, WEIGHT)


def main(arguments: Sequence[str]) -> int:
    options = load_options(ConViTOptions, list(arguments), "python benchmarks/convit.py")
    device = select_device(options.device)
    tables = [convit_table(options.size, batch, options.precision, device) for batch in dict.fromkeys(options.batch)]
    return run_tables(options, tables, device)[0]


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
