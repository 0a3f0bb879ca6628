"""The CUDA backend on the CPU: the same modules and recordings, without CUDA."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from support.eager_recorder import EagerRecorder
from vitfast.inference.accelerate import assemble
from vitfast.inference.accelerated_model import AcceleratedModel
from vitfast.inference.cuda.cuda_backend import CudaBackend
from vitfast.inference.cuda.graph_cache import GraphCache
from vitfast.inference.ir import Precision
from vitfast.inference.lowering import lower
from vitfast.inference.normalization import Normalization


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
    backend = CudaBackend(source, precision, torch.device("cpu"), normalization)
    return assemble(source, lower(source), backend, precision, graphs, **options)
