"""The operators: each checks its arguments, then runs vitfast's kernel or, where there is none, PyTorch's operators."""

import vitfast.ops.packed  # noqa: F401 -- registers the raw operators of accelerated models with torch
from vitfast.ops.attention import attention as attention
from vitfast.ops.attention import attention_packed as attention_packed
from vitfast.ops.gated_positional_attention import gated_positional_attention as gated_positional_attention
from vitfast.ops.layer_norm import add_layer_norm as add_layer_norm
from vitfast.ops.layer_norm import layer_norm as layer_norm
from vitfast.ops.linear import linear as linear
from vitfast.ops.matmul_accumulate import matmul_accumulate as matmul_accumulate
from vitfast.ops.mlp import mlp as mlp
from vitfast.ops.quantize_fixed import quantize_fixed as quantize_fixed
from vitfast.ops.quantize_float import quantize_float as quantize_float
from vitfast.ops.upsample_relations import upsample_relations as upsample_relations
