"""How fast do all exits of a Dynamic Vision Transformer run, compared with the code that it was published with?

    python benchmarks/dvt.py original=CHECKOUT [key=value …] json=benchmarks/results/dvt-MACHINE.json

CHECKOUT is a clone of github.com/blackfeather-wang/Dynamic-Vision-Transformer; it needs timm. ``--help`` lists the
options.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitfast.benchmarking.harness import Case
from vitfast.benchmarking.machine import DTYPES
from vitfast.benchmarking.model_cases import WEIGHT, forward, logits, model_case, sample_images, seeded_model
from vitfast.benchmarking.peers import Unavailable, import_peer
from vitfast.benchmarking.run import run_tables
from vitfast.benchmarking.run_options import ModelRunOptions
from vitfast.benchmarking.table import Table, count_gflop
from vitfast.cli import run_command
from vitfast.config import load_options, option
from vitfast.device import select_device
from vitfast.errors import UserError
from vitfast.inference.accelerate import accelerate
from vitfast.inference.ir import PRECISIONS
from vitfast.models import DVT
from vitfast.weights.key_tables.dvt import from_released_key

ORIGINALS = {"dvt_t2t_vit_12": "DVT_T2t_vit_12", "dvt_t2t_vit_14": "DVT_T2t_vit_14"}


@dataclass
class DVTOptions(ModelRunOptions):
    """Compares all exits of a Dynamic Vision Transformer with the original code."""

    precision: str = option("fp32", "arithmetic and type of the weights", choices=list(DTYPES))
    model: str = option("dvt_t2t_vit_12", "the model", choices=list(ORIGINALS))
    original: str | None = option(
        None, "a checkout of github.com/blackfeather-wang/Dynamic-Vision-Transformer; null: vitfast alone"
    )

    def reported(self) -> dict[str, Any]:
        """All but the folder."""
        return {key: value for key, value in super().reported().items() if key != "original"}


def dvt_table(model_name: str, original: str | None, batch: int, precision: str, device: torch.device) -> Table:
    """Compares all exits of vitfast's model, also accelerated, with the original code in the folder ``original``."""

    def build(table: Table) -> list[Case]:
        model = seeded_model(model_name)
        assert isinstance(model, DVT)
        images = sample_images(model, batch).to(device)
        inputs = images.to(DTYPES[precision])
        others: dict[str, nn.Module] = {}
        try:
            other = build_original(ORIGINALS[model_name], original)
        except Unavailable as error:
            table.left_out["original"] = str(error)
        else:
            state = {from_released_key(key): tensor for key, tensor in other.state_dict().items()}
            model.load_state_dict(state)
            others["original"] = OnDevice(other.to(device).eval())
            table.reference = logits(others["original"], images)
            table.reference_name = "the original in fp32"
        model.to(device)
        accelerated = []
        if precision in PRECISIONS.get(device.type, ()):
            accelerated = [model_case("vitfast accelerated", accelerate(model, precision), images)]
        for converted in (model, *others.values()):
            converted.to(inputs.dtype)
        table.images = batch
        table.gflop = count_gflop(lambda: forward(model, inputs))
        rest = [model_case(name, other, inputs) for name, other in others.items()]
        return [model_case("vitfast", model, inputs), *accelerated, *rest]

    title = f"all exits of {model_name}, batch {batch}, {precision}"
    return Table("inference", title, {"model": model_name, "batch": batch}, precision, build, WEIGHT)


def build_original(name: str, checkout: str | None) -> nn.Module:
    """Builds the original model with random weights.

    Raises:
        Unavailable: there is no checkout, or it cannot be imported.
        UserError: the folder is not a checkout.
    """
    if checkout is None:
        raise Unavailable("no checkout: git clone https://github.com/blackfeather-wang/Dynamic-Vision-Transformer")
    folder = Path(checkout).expanduser().resolve()
    if not (folder / "models" / "t2t_vit.py").is_file():
        raise UserError(f"original={checkout} has no models/t2t_vit.py; give a checkout of Dynamic-Vision-Transformer")
    import_peer("timm")  # before the checkout's copy, which does not work with current torch
    sys.path.insert(0, str(folder))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about names that timm has moved
            module: Any = importlib.import_module("models.t2t_vit")
    finally:
        sys.path.remove(str(folder))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = getattr(module, name)()
    return model


class OnDevice(nn.Module):
    """Runs the original model, whose forward pass calls ``.cuda()``, on any device."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Returns the logits of every exit."""
        with _without_cuda_calls(images.device):
            outputs: tuple[Tensor, ...] = self.model(images)
        return outputs


@contextmanager
def _without_cuda_calls(device: torch.device) -> Iterator[None]:
    if device.type == "cuda":
        yield
        return
    before = torch.Tensor.cuda
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.cuda = before  # type: ignore[method-assign]


def main(arguments: Sequence[str]) -> int:
    options = load_options(DVTOptions, list(arguments), "python benchmarks/dvt.py")
    device = select_device(options.device)
    batches = dict.fromkeys(options.batch)
    tables = [dvt_table(options.model, options.original, batch, options.precision, device) for batch in batches]
    return run_tables(options, tables, device)[0]


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
