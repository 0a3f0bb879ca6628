"""The CUDA backend on the CPU: the same modules and recordings, without CUDA."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from support.eager_recorder import EagerRecorder
from vitfast.inference.accelerate import assemble
from vitfast.inference.accelerated_model import AcceleratedModel
from vitfast.inference.cuda.cuda_backend import CudaBackend
from vitfast.inference.cuda.graph_cache import GraphCache
from vitfast.inference.ir import Precision
from vitfast.inference.lowering import lower
from vitfast.inference.normalization import Normalization


def fp8_on_cpu() -> Any:
    """Decorator and context manager in which ``torch._scaled_mm`` is float32 arithmetic: for models on the CPU.

    torch 2.11's operator for the CPU takes one scale per tensor, not one per row.
    """

    def scaled_mm(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, *, out_dtype: torch.dtype) -> Tensor:
        assert a.dtype == b.dtype == torch.float8_e4m3fn
        return (a.float() @ b.float() * (scale_a * scale_b)).to(out_dtype)

    return mock.patch.object(torch, "_scaled_mm", scaled_mm)


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
