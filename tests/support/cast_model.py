"""What ``vitfast.accelerate`` makes for a GPU, made on the CPU: the same parts and recordings, without CUDA."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vitfast.inference.accelerate import assemble
from vitfast.inference.accelerated_model import AcceleratedModel
from vitfast.inference.graphs.graph_cache import GraphCache
from vitfast.inference.graphs.recorder import EagerRecorder
from vitfast.inference.ir import Precision
from vitfast.inference.packed.cast_packer import CastPacker
from vitfast.inference.packed.normalization import Normalization


def cast_model(
    source: nn.Module,
    precision: Precision = "fp32",
    *,
    largest: int = 4,
    normalization: Normalization | None = None,
    **options: Any,
) -> AcceleratedModel:
    """Accelerates a model as for a GPU.

    Args:
        source: the model.
        precision: of a GPU.
        largest: the largest batch that is recorded; 0: none is.
        normalization: of images.
        **options: of ``assemble``.
    """
    graphs = GraphCache(EagerRecorder, largest) if largest else None
    packer = CastPacker(source, precision, torch.device("cpu"), normalization)
    return assemble(source, packer, precision, graphs, **options)
