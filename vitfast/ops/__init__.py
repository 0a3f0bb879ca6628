"""The operators: each checks its arguments, then runs vitfast's kernel or, where there is none, PyTorch's operators."""

import vitfast.ops.packed  # noqa: F401 -- registers the raw operators of accelerated models with torch
from vitfast.ops.attention import attention, attention_packed
from vitfast.ops.gated_positional_attention import gated_positional_attention
from vitfast.ops.layer_norm import add_layer_norm, layer_norm
from vitfast.ops.linear import linear
from vitfast.ops.matmul_accumulate import matmul_accumulate
from vitfast.ops.mlp import mlp
from vitfast.ops.quantize_fixed import quantize_fixed
from vitfast.ops.quantize_float import quantize_float
from vitfast.ops.upsample_relations import upsample_relations

__all__ = [
    "add_layer_norm",
    "attention",
    "attention_packed",
    "gated_positional_attention",
    "layer_norm",
    "linear",
    "matmul_accumulate",
    "mlp",
    "quantize_fixed",
    "quantize_float",
    "upsample_relations",
]
