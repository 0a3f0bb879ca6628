// Products with a fused epilogue on CUDA: what is asked of the kernels.
//
//     out = round(residual + scale * activation(x weightᵀ + bias))

#pragma once

#include <cstdint>

#include "csrc/common/float_format.h"
#include "csrc/common/types.h"

namespace vitfast {

enum class EpilogueActivation : int { none, gelu, gelu_tanh };

// What is done with a sum of products, apart from the addends. Rounding is to the nearest number of a format, ties to
// even; what is rounded is a number of the stored type, as if quantize_float read the result.
struct GemmEpilogue {
  EpilogueActivation activation;
  bool rounds;
  FloatFormat<Float32Bits> format;
};

// Matrices are row by row without gaps, on 16-byte boundaries; columns and depth are multiples of 8, nothing is empty.
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

// The gradient of what an activation read, and the sums of its columns, from the gradient of a later product's result:
//
//     out = (grad weight) * activation'(pre_activation)
struct GemmGradientArguments {
  const void* grad;            // [rows, depth]
  const void* weight;          // [depth, columns], as the later product has it
  const void* pre_activation;  // [rows, columns]
  void* out;                   // [rows, columns]
  float* partial_sums;         // [count_row_tiles(rows), columns]: each tile of rows writes those of its own
  int rows, columns, depth;
  EpilogueActivation activation;  // not none
};

constexpr int gemm_alignment = 8;    // elements: 16 bytes
constexpr int gemm_tile_rows = 128;  // of every kernel

constexpr int count_row_tiles(int rows) {
  return (rows + gemm_tile_rows - 1) / gemm_tile_rows;
}

}  // namespace vitfast
