// Arguments of the CUDA GEMMs with a fused epilogue.

#pragma once

#include <cstdint>

#include "csrc/common/float_format.h"
#include "csrc/common/types.h"

namespace vitfast {

enum class EpilogueActivation : int { none, gelu, gelu_tanh };

// Rounding is to nearest, ties to even, and applies to the value as stored in the output type, as if quantize_float
// read the result.
struct GemmEpilogue {
  EpilogueActivation activation;
  bool rounds;
  FloatFormat<Float32Bits> format;
};

// out = round(residual + scale * activation(x weightᵀ + bias))
//
// Matrices are row-major, contiguous and 16-byte aligned; columns and depth are multiples of gemm_alignment, no size is
// zero.
struct GemmArguments {
  const void* x;         // [rows, depth]
  const void* weight;    // [columns, depth]
  const void* bias;      // [columns] or null
  const void* scale;     // [columns] or null: 1
  const void* residual;  // [rows, columns] or null
  void* out;             // [rows, columns]
  int rows, columns, depth;
  GemmEpilogue epilogue;
};

// out = (grad weight) * activation'(pre_activation): the gradient of an activation's input from the gradient of the
// next GEMM's output, and its column sums.
struct GemmGradientArguments {
  const void* grad;            // [rows, depth]
  const void* weight;          // [depth, columns]
  const void* pre_activation;  // [rows, columns]
  void* out;                   // [rows, columns]
  float* partial_sums;         // [count_row_tiles(rows), columns]: column sums of each row tile
  int rows, columns, depth;
  EpilogueActivation activation;  // not none
};

constexpr int gemm_alignment = 8;    // elements: 16 bytes
constexpr int gemm_tile_rows = 128;  // of every kernel

constexpr int count_row_tiles(int rows) {
  return (rows + gemm_tile_rows - 1) / gemm_tile_rows;
}

}  // namespace vitfast
