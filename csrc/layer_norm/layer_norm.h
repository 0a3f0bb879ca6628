// Arguments of the LayerNorm kernels. Tensors are contiguous.
//
// `type` is the type of the residual stream: of residual and summed, or else of x, and of their gradients.
// `branch_type` is that of y and its gradient, and of x beside a residual: the same or, on CUDA with a stream of
// float32, a narrower one. Statistics and partial sums have the computing type: double for float64, otherwise float.

#pragma once

#include "csrc/common/chunks.h"
#include "csrc/common/float_format.h"
#include "csrc/common/types.h"

namespace vitfast {

constexpr int64_t layer_norm_max_channels = 1280;  // of the CUDA kernels

struct LayerNormForward {
  Type type, branch_type;
  Type parameter_type;   // the computing type or, on CUDA only, `type`
  const void* x;         // [rows, C]
  const void* residual;  // [rows, C] or null
  const void* weight;    // [C] of parameter_type, or null
  const void* bias;      // [C] of parameter_type, or null
  void* summed;          // [rows, C]; used with residual
  void* y;               // [rows, C]
  void* mean;            // [rows]; on the CPU it may be null, as may rstd
  void* rstd;            // [rows]
  int64_t channels;
  int64_t rows;
  double eps;
  // in host memory; null: no rounding
  const FloatRounding* round_sum;      // of x + residual
  const FloatRounding* round_operand;  // of the input of the normalization
  const FloatRounding* round_result;   // of y
  const void* added = nullptr;         // [rows, C] or null: added to y, on the CPU only and without round_result
};

// With g = grad_y * weight and x̂ = (x - mean) * rstd: grad_x = rstd * (g - average(g) - x̂ * average(g x̂)).
struct LayerNormBackward {
  Type type, branch_type;
  Type parameter_type;
  const void* grad_y;       // [rows, C]
  const void* grad_summed;  // [rows, C] or null: added to grad_x
  const void* x;            // [rows, C]
  const void* mean;         // [rows]
  const void* rstd;         // [rows]
  const void* weight;       // [C] of parameter_type, or null
  void* grad_x;             // [rows, C]
  void* partial_weight;     // [chunks, C] or null: sums of each chunk of rows
  void* partial_bias;       // [chunks, C] or null
  int64_t channels;
  int64_t rows;
  int64_t rows_per_chunk;
};

}  // namespace vitfast
