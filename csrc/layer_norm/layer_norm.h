// What the tensor functions ask of the LayerNorm kernels. Pointers are to the first element of contiguous tensors.
//
// `type` is that of x, the residual, the results and their gradients; statistics and partial sums are in the type that
// is computed in: double for float64, else float.

#pragma once

#include "csrc/common/float_format.h"
#include "csrc/common/types.h"

namespace vitfast {

struct LayerNormForward {
  Type type;
  Type parameter_type;   // on the CPU the computing type; on CUDA that, or `type`
  const void* x;         // [rows, C]
  const void* residual;  // [rows, C] or null
  const void* weight;    // [C] of parameter_type, or null
  const void* bias;      // [C] of parameter_type, or null
  void* summed;          // [rows, C]; used with residual
  void* y;               // [rows, C]
  void* mean;            // [rows]
  void* rstd;            // [rows]
  int64_t channels;
  int64_t rows;
  double eps;
  // in the host's memory
  const FloatRounding* round_sum;      // null: the sum is not rounded; nor
  const FloatRounding* round_operand;  // what is normalized
  const FloatRounding* round_result;   // and y
};

// With g = grad_y * weight and x̂ = (x - mean) * rstd: grad_x = rstd * (g - average(g) - x̂ * average(g x̂)).
struct LayerNormBackward {
  Type type;
  Type parameter_type;
  const void* grad_y;       // [rows, C]
  const void* grad_summed;  // [rows, C] or null: added to grad_x
  const void* x;            // [rows, C]
  const void* mean;         // [rows]
  const void* rstd;         // [rows]
  const void* weight;       // [C] of parameter_type, or null
  void* grad_x;             // [rows, C]
  void* partial_weight;     // [chunks, C] or null: each chunk of rows writes its own sums
  void* partial_bias;       // [chunks, C] or null
  int64_t channels;
  int64_t rows;
  int64_t rows_per_chunk;
};

// The chunks, and with them the order of the sums, depend on the shape alone: any number of threads gives the same
// bits.
constexpr int64_t count_chunks(int64_t rows, int64_t rows_per_chunk) {
  return (rows + rows_per_chunk - 1) / rows_per_chunk;
}

constexpr int64_t split_rows(int64_t rows, int64_t max_chunks, int64_t min_rows_per_chunk) {
  const int64_t even_split = count_chunks(rows, max_chunks);
  return even_split > min_rows_per_chunk ? even_split : min_rows_per_chunk;
}

}  // namespace vitfast
