// GEMM with a rounded accumulator. Every result is computed by the loop that defines it, in ascending k, and equals the
// CPU operator's bit for bit.
//
// A block computes a 64 x 64 tile, a thread 8 x 4 results of it; accumulators and chunk sums are kept in registers. x
// and weight are staged in shared memory 32 depth steps at a time, depth-major, so that a thread's step is three
// 16-byte loads for 32 multiply-adds.

#pragma once

#include <cstdint>
#include <stdexcept>

#include "csrc/cuda/launch.cuh"
#include "csrc/cuda/numbers.cuh"
#include "csrc/cuda/pack.cuh"
#include "csrc/cuda/shared_memory.cuh"
#include "csrc/cuda/threads.cuh"
#include "csrc/matmul_accumulate/matmul_accumulate.h"
#include "csrc/quantize/device_rounding.cuh"

namespace vitfast {

struct AccumulateShape {
  static constexpr int tile = 64;   // rows, and columns, of a block
  static constexpr int depth = 32;  // of a round
  static constexpr int rows = 8;    // of a thread
  static constexpr int columns = 4;
  static constexpr int threads = tile / rows * (tile / columns);
  static constexpr int shared_bytes_asked = 2 * shared_bytes<float>(depth * tile);
};

// Index of element (k, i) in shared rows [depth][tile]. Packs of four are permuted within a step k, so that the eight
// steps of four rows that a warp writes at once cover all 32 banks.
__device__ __forceinline__ int accumulate_place(int k, int i) {
  return k * AccumulateShape::tile + ((i / 4) ^ (k % 8)) * 4 + i % 4;
}

// Loads steps [first, first + count) of 64 rows of x [rows, depth] from row `first_row`. Further steps are zero; rows
// past the end repeat the last row.
__device__ __forceinline__ void load_rows(
    float* target, const float* x, int64_t rows, int64_t depth, int64_t first_row, int64_t first, int count) {
  using Shape = AccumulateShape;
  constexpr int steps_at_once = 8, rows_at_once = Shape::threads / steps_at_once;
  constexpr int row_rounds = Shape::tile / rows_at_once, step_rounds = Shape::depth / steps_at_once;
  const int first_step = int(threadIdx.x) % steps_at_once, first_place = int(threadIdx.x) / steps_at_once;
  float values[row_rounds][step_rounds];  // all loads are in flight before the first store
#pragma unroll
  for (int r = 0; r < row_rounds; ++r) {
    const int64_t row = first_row + first_place + r * rows_at_once;
    const float* source = x + (row < rows ? row : rows - 1) * depth + first;
#pragma unroll
    for (int s = 0; s < step_rounds; ++s) {
      const int step = first_step + s * steps_at_once;
      values[r][s] = step < count ? source[step] : 0.0f;
    }
  }
#pragma unroll
  for (int r = 0; r < row_rounds; ++r) {
#pragma unroll
    for (int s = 0; s < step_rounds; ++s) {
      target[accumulate_place(first_step + s * steps_at_once, first_place + r * rows_at_once)] = values[r][s];
    }
  }
}

// A thread's results: the rounded accumulators and the sums of the current chunk.
struct AccumulateResults {
  float accumulator[AccumulateShape::rows][AccumulateShape::columns] = {};
  float sum[AccumulateShape::rows][AccumulateShape::columns] = {};

  __device__ __forceinline__ void add_products(const float* x, const float* weight, int k, int row, int column) {
    using Shape = AccumulateShape;
    float left[Shape::rows], right[Shape::columns];
#pragma unroll
    for (int i = 0; i < Shape::rows; i += 4) {
      const Pack<float> pack = load_pack(x + accumulate_place(k, row + i));
#pragma unroll
      for (int j = 0; j < 4; ++j) left[i + j] = pack.element[j];
    }
    const Pack<float> pack = load_pack(weight + accumulate_place(k, column));
#pragma unroll
    for (int j = 0; j < Shape::columns; ++j) right[j] = pack.element[j];
#pragma unroll
    for (int i = 0; i < Shape::rows; ++i) {
#pragma unroll
      for (int j = 0; j < Shape::columns; ++j) sum[i][j] = fused_multiply_add(left[i], right[j], sum[i][j]);
    }
  }

  template <Rounding rule>
  __device__ __forceinline__ void end_chunk(const RuleRounding<rule>& rounding) {
#pragma unroll
    for (int i = 0; i < AccumulateShape::rows; ++i) {
#pragma unroll
      for (int j = 0; j < AccumulateShape::columns; ++j) {
        accumulator[i][j] = rounding.of_computed(rounded_sum(accumulator[i][j], sum[i][j]));
        sum[i][j] = 0.0f;
      }
    }
  }
};

template <Rounding rule>
__global__ void __launch_bounds__(AccumulateShape::threads)
    matmul_accumulate_kernel(const MatmulAccumulate a, const RuleRounding<rule> rounding, const int64_t column_tiles) {
  using Shape = AccumulateShape;
  const int64_t row_tile = blockIdx.x / column_tiles;
  const int64_t first_row = row_tile * Shape::tile;
  const int64_t first_column = (blockIdx.x - row_tile * column_tiles) * Shape::tile;
  constexpr int threads_across = Shape::tile / Shape::columns;
  const int row = int(threadIdx.x) / threads_across * Shape::rows;
  const int column = int(threadIdx.x) % threads_across * Shape::columns;

  SharedMemory shared;
  float* x = shared.take<float>(Shape::depth * Shape::tile);
  float* weight = shared.take<float>(Shape::depth * Shape::tile);
  AccumulateResults results;
  int64_t left_in_chunk = a.chunk;
  for (int64_t first = 0; first < a.depth; first += Shape::depth) {
    const int count = int(a.depth - first < Shape::depth ? a.depth - first : Shape::depth);
    sync_threads();  // every thread has read the previous round
    load_rows(x, a.x, a.rows, a.depth, first_row, first, count);
    load_rows(weight, a.weight, a.columns, a.depth, first_column, first, count);
    sync_threads();
    for (int k = 0; k < count;) {
      const int end = int(left_in_chunk < count - k ? k + left_in_chunk : count);
      left_in_chunk -= end - k;
      for (; k < end; ++k) results.add_products(x, weight, k, row, column);
      if (left_in_chunk > 0) continue;
      results.end_chunk(rounding);
      left_in_chunk = a.chunk;
    }
  }
  if (left_in_chunk < a.chunk) results.end_chunk(rounding);

#pragma unroll
  for (int i = 0; i < Shape::rows; ++i) {
    if (first_row + row + i >= a.rows) break;
    float* out = a.out + (first_row + row + i) * a.columns + first_column + column;
#pragma unroll
    for (int j = 0; j < Shape::columns; ++j) {
      if (first_column + column + j < a.columns) out[j] = results.accumulator[i][j];
    }
  }
}

void launch_matmul_accumulate(const MatmulAccumulate& a, Stream stream) {
  using Shape = AccumulateShape;
  const int64_t column_tiles = ceil_div(a.columns, Shape::tile);
  const int64_t blocks = count_result_blocks(ceil_div(a.rows, Shape::tile), column_tiles);
  if (blocks == 0) return;
  with_rule(a.rounding.rounding, [&](auto rule) {
    if constexpr (rule == Rounding::stochastic) {
      throw std::runtime_error("matmul_accumulate: the accumulator is not rounded stochastically");
    } else {
      const auto kernel = matmul_accumulate_kernel<rule>;
      const auto rounding = rule_rounding<rule>(&a.rounding);
      launch(kernel, blocks, Shape::threads, Shape::shared_bytes_asked, stream, a, rounding, column_tiles);
    }
  });
}

}  // namespace vitfast
