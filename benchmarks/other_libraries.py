"""How fast are models of other libraries after ``accelerate``, compared with the engines that run them?

    python benchmarks/other_libraries.py [key=value …] json=benchmarks/results/other_libraries-MACHINE.json

Models have random weights and the size of their default configuration; their main output is compared. Needs timm,
transformers and open_clip, and the engines to compare with. ``--help`` lists the options.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from vitfast.benchmarking.engines import ENGINES
from vitfast.benchmarking.harness import Case
from vitfast.benchmarking.model_cases import WEIGHT, engine_cases
from vitfast.benchmarking.run import run_tables
from vitfast.benchmarking.run_options import ModelRunOptions
from vitfast.benchmarking.table import Table
from vitfast.cli import run_command
from vitfast.config import load_options, option
from vitfast.errors import UserError
from vitfast.inference.accelerate import accelerate

MODELS = (
    *("transformers/CLIPVisionModelWithProjection", "open_clip/ViT-B-32", "transformers/SiglipVisionModel"),
    *("timm/vit_small_patch16_dinov3", "transformers/DINOv3ViTModel", "timm/eva02_small_patch14_224"),
    *("transformers/Dinov2Model", "timm/naflexvit_base_patch16_siglip", "timm/beit_base_patch16_224"),
    *("timm/swin_tiny_patch4_window7_224", "timm/swinv2_tiny_window8_256", "timm/samvit_base_patch16_224"),
)
_OUTPUTS = ("image_embeds", "logits", "pooler_output", "last_hidden_state")  # of transformers, the first that exists


@dataclass
class OtherLibrariesOptions(ModelRunOptions):
    """Compares accelerated models of timm, transformers and open_clip with other engines on the CPU."""

    model: list[str] = option(list(MODELS), "LIBRARY/NAME of one or more models; of transformers the name is the class")
    precision: list[str] = option(["fp32"], "one or more", choices=["fp32", "bf16", "int8"])
    peers: list[str] = option(["eager", "compile", "openvino"], "one or more engines", choices=list(ENGINES))


class MainOutput(nn.Module):
    """Calls a model and returns one tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Reads ``images`` ``[B, C, H, W]``."""
        output = self.model(images)
        if isinstance(output, Tensor):
            return output
        found: Tensor = next(output[name] for name in _OUTPUTS if name in output)
        return found


def build_model(name: str) -> nn.Module:
    """Builds a model in evaluation mode, with the same random weights in every run."""
    library, _, model_name = name.partition("/")
    if library not in ("timm", "transformers", "open_clip"):
        raise UserError(f"model={name}: the library must be timm, transformers or open_clip, as in {MODELS[0]}")
    module = importlib.import_module(library)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if library == "open_clip":
            return module.create_model(model_name).visual.eval()  # type: ignore[no-any-return]
        if library == "timm":
            return module.create_model(model_name).eval()  # type: ignore[no-any-return]
        cls = getattr(module, model_name)
        return cls(cls.config_class()).eval()  # type: ignore[no-any-return]


def compare(name: str, batch: int, precision: str, peers: Sequence[str]) -> Table:
    """Compares an accelerated model with other engines."""

    def build(table: Table) -> list[Case]:
        # with parameters that require gradients, torch's counter of FLOPs fails in inference mode on NaFlexVit
        model = build_model(name).requires_grad_(False)
        size = getattr(getattr(model, "config", None), "image_size", None) or getattr(model, "image_size", None)
        size = model.pretrained_cfg["input_size"][-1] if size is None else size  # type: ignore[union-attr,index,operator]
        images = torch.randn(batch, 3, *((size, size) if isinstance(size, int) else size))
        source = MainOutput(model)
        table.reference_name = "the source in fp32"
        return engine_cases(table, source, source, MainOutput(accelerate(model, precision)), images, peers)

    title = f"{name}, batch {batch}, {precision}, engines"
    return Table("engines", title, {"model": name, "batch": batch}, precision, build, WEIGHT)


def main(arguments: Sequence[str]) -> int:
    options = load_options(OtherLibrariesOptions, list(arguments), "python benchmarks/other_libraries.py")
    cases = product(options.model, options.batch, options.precision)
    return run_tables(options, [compare(*case, options.peers) for case in dict.fromkeys(cases)], torch.device("cpu"))[0]


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
