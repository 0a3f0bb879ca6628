// Arguments of the CUDA GEMMs with a fused epilogue.

#pragma once

#include <cstdint>

#include "csrc/common/chunks.h"
#include "csrc/common/types.h"

namespace vitfast {

enum class EpilogueActivation : int { none, gelu, gelu_tanh };

// What a GEMM computes from sum = x weightᵀ + bias. Each has a kernel of its own: the unrolled code of one kernel for
// all exceeds the instruction cache, which made it four times slower on an H100.
enum class GemmEpilogue : int {
  linear,         // out = source + scale * sum
  gelu,           // out = gelu(sum)
  gelu_tanh,      // the same by the tanh approximation
  gelu_gradient,  // out = sum * gelu'(source) and its column sums, without a bias: the gradient of GELU's argument
};

// Matrices are row-major, contiguous and 16-byte aligned; columns and depth are multiples of gemm_alignment, no size is
// zero.
struct GemmArguments {
  const void* x;        // [rows, depth]
  const void* weight;   // [columns, depth]
  const void* bias;     // [columns] or null
  const void* scale;    // linear: [columns] or null: 1
  const void* source;   // [rows, columns]. linear: a residual or null; gelu_gradient: GELU's argument
  void* out;            // [rows, columns]
  void* sum;            // gelu, gelu_tanh: [rows, columns] or null: not written
  float* partial_sums;  // gelu_gradient: [count_row_tiles(rows), columns], column sums of each row tile
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
