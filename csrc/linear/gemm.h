// Arguments of the CUDA GEMMs with a fused epilogue.

#pragma once

#include <cstdint>

#include "csrc/common/chunks.h"
#include "csrc/common/types.h"

namespace vitfast {

enum class EpilogueActivation : int { none, gelu, gelu_tanh };

// What a GEMM computes from its sum.
struct GemmEpilogue {
  EpilogueActivation activation;
  bool is_gradient;  // of the activation, which is not none; without bias and scale
};

// sum = x weightᵀ + bias
// out = source + scale * activation(sum)
//
// or, if epilogue.is_gradient: out = (x weightᵀ) * activation'(source), and its column sums. This is the gradient of an
// activation's input from the gradient of the next GEMM's output.
//
// Matrices are row-major, contiguous and 16-byte aligned; columns and depth are multiples of gemm_alignment, no size is
// zero.
struct GemmArguments {
  const void* x;        // [rows, depth]
  const void* weight;   // [columns, depth]
  const void* bias;     // [columns] or null
  const void* scale;    // [columns] or null: 1
  const void* source;   // [rows, columns]: residual or null; of a gradient: the activation's input
  void* out;            // [rows, columns]
  void* sum;            // [rows, columns] or null: not written
  float* partial_sums;  // of a gradient: [count_row_tiles(rows), columns], column sums of each row tile; or null
  int rows, columns, depth;
  GemmEpilogue epilogue;
};

// Gradients of a GEMM epilogue. Matrices are row-major, contiguous and 16-byte aligned; columns are a multiple of 8.
struct EpilogueGradient {
  const void* grad_out;  // [rows, columns]
  const void* sum;       // [rows, columns] or null: neither activation nor scale
  const void* scale;     // [columns] or null: 1
  void* grad_sum;        // [rows, columns] or null: equal to grad_out
  float* partial_bias;   // [chunks, columns] or null: column sums of each chunk of rows
  float* partial_scale;  // [chunks, columns] or null
  int64_t rows;
  int64_t columns;
  int64_t rows_per_chunk;
  EpilogueActivation activation;
};

constexpr int epilogue_gradient_columns = 256;  // of a block

// Rows of a block. The number of chunks, and so the order of the sums, depends only on the shape. Chunks are small
// enough to occupy a large GPU, and large enough that writing the float partial sums is negligible.
constexpr int64_t epilogue_gradient_rows_per_chunk(int64_t rows, int64_t columns) {
  constexpr int64_t blocks = 1024, min_rows = 64;
  const int64_t chunks = blocks / ceil_div(columns, epilogue_gradient_columns);
  return split_rows(rows, chunks > 0 ? chunks : 1, min_rows);
}

constexpr int gemm_alignment = 8;    // elements: 16 bytes
constexpr int gemm_tile_rows = 128;  // of every kernel

constexpr int count_row_tiles(int rows) {
  return (rows + gemm_tile_rows - 1) / gemm_tile_rows;
}

}  // namespace vitfast
