// GEMM with float16 accumulation in tensor cores. Rounding within a chunk is defined by the hardware
// (docs/internals/cuda_gemm.md); chunk sums are added in float, in ascending k.
//
// A block computes 128 x 64 results, each of its four warps 64 x 32: 16 mma per depth step of 16, from six fragment
// loads. Tiles of x and weight, 64 of the depth at a time, are double-buffered in shared memory. Rows and depth past
// the end are zero.

#pragma once

#include "csrc/cuda/launch.cuh"
#include "csrc/cuda/matrix.cuh"
#include "csrc/cuda/numbers.cuh"
#include "csrc/cuda/pack.cuh"
#include "csrc/cuda/shared_memory.cuh"
#include "csrc/cuda/shared_tile.cuh"
#include "csrc/cuda/threads.cuh"
#include "csrc/matmul_accumulate/matmul_accumulate.h"

namespace vitfast {

struct Fp16AccumulationShape {
  static constexpr int row_tiles = 4, column_tiles = 4;  // per warp, of 16 rows and of 8 columns
  static constexpr int warp_rows = 16 * row_tiles, warp_columns = 8 * column_tiles;
  static constexpr int rows = 2 * warp_rows, columns = 2 * warp_columns;
  static constexpr int threads = 4 * warp_size;
  static constexpr int step = fp16_accumulation_step;
  static constexpr int depth = 64;  // of the depth, per buffer
  static constexpr int x_elements = rows * depth, weight_elements = columns * depth;
  static constexpr int shared_bytes_asked =
      shared_bytes<Half>(2 * x_elements) + shared_bytes<Half>(2 * weight_elements);
  using Tile = SharedTile<Half, depth>;
};

// A thread's share of the copies into a buffer: the same 16-byte chunk of every 16th row.
template <int tile_rows>
class RowCopies {
 public:
  // `x`: the block's first row. `rows`: number of rows from there to the end of the matrix.
  __device__ __forceinline__ RowCopies(const Half* x, int64_t depth, int64_t rows)
      : source_(x + place().row * depth + place().column),
        rows_apart_(rows_at_once * depth),
        rows_left_(int(rows < tile_rows ? rows : tile_rows) - place().row) {}

  // Starts the copies of the next buffer; `left`: remaining depth. Anything past the end is filled with zeros.
  __device__ __forceinline__ void copy(const Fp16AccumulationShape::Tile& tile, int64_t left) {
    Half* target = tile.chunk(place().row, place().column / Tile::chunk_size);
    const Half* source = source_;
#pragma unroll
    for (int row = 0; row < tile_rows; row += rows_at_once) {
      copy_async(target + row * Tile::columns, source, row < rows_left_ && place().column < left);
      source += rows_apart_;
    }
    source_ += Fp16AccumulationShape::depth;
  }

 private:
  using Tile = Fp16AccumulationShape::Tile;
  static constexpr int rows_at_once = Fp16AccumulationShape::threads / Tile::chunks;
  static_assert(rows_at_once % 8 == 0, "the permutation of chunks repeats every 8 rows");

  struct Place {
    int row, column;
  };
  static __device__ __forceinline__ Place place() {
    return {int(threadIdx.x) / Tile::chunks, int(threadIdx.x) % Tile::chunks * Tile::chunk_size};
  }

  const Half* source_;
  int64_t rows_apart_;
  int rows_left_;
};

// A warp's results as C fragments: the accumulators and the sums of the current chunk.
struct Fp16AccumulationResults {
  using Shape = Fp16AccumulationShape;
  float accumulator[Shape::row_tiles][Shape::column_tiles][4] = {};
  uint32_t sum[Shape::row_tiles][Shape::column_tiles][2] = {};

  // Multiplies depth step `step` of the warp's rows of x and weight.
  __device__ __forceinline__ void add_products(const Shape::Tile& x, const Shape::Tile& weight, int step, int lane) {
    // the permutation of chunks repeats every 8 rows
    const Half* x_rows = x.chunk(lane % 16, 2 * step + lane / 16);
    uint32_t a[Shape::row_tiles][4];
#pragma unroll
    for (int i = 0; i < Shape::row_tiles; ++i) ldmatrix_x4(a[i], x_rows + i * 16 * Shape::depth);
    // both depth halves of two tiles
    const Half* weight_rows = weight.chunk(lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2);
#pragma unroll
    for (int j = 0; j < Shape::column_tiles; j += 2) {
      uint32_t b[4];
      ldmatrix_x4(b, weight_rows + j * 8 * Shape::depth);
#pragma unroll
      for (int i = 0; i < Shape::row_tiles; ++i) {
        mma_m16n8k16_fp16_accumulation(sum[i][j], a[i], b[0], b[1]);
        mma_m16n8k16_fp16_accumulation(sum[i][j + 1], a[i], b[2], b[3]);
      }
    }
  }

  template <bool rounds>
  __device__ __forceinline__ void end_chunk() {
#pragma unroll
    for (int i = 0; i < Shape::row_tiles; ++i) {
#pragma unroll
      for (int j = 0; j < Shape::column_tiles; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float &first = accumulator[i][j][2 * half], &second = accumulator[i][j][2 * half + 1];
          uint32_t& pair = sum[i][j][half];
          first = rounded_sum(first, lower(pair));
          second = rounded_sum(second, upper(pair));
          if constexpr (rounds) {
            pair = round_to_pair<Half>(first, second);
            first = lower(pair);
            second = upper(pair);
          }
          pair = 0;
        }
      }
    }
  }

 private:
  static __device__ __forceinline__ float lower(uint32_t pair) { return to_float(Half{uint16_t(pair)}); }
  static __device__ __forceinline__ float upper(uint32_t pair) { return to_float(Half{uint16_t(pair >> 16)}); }
};

// Writes a warp's results to [first_row, first_column] and following.
__device__ __forceinline__ void store_results(
    const Fp16AccumulationResults& results,
    const MatmulFp16Accumulation& a,
    int64_t first_row,
    int64_t first_column,
    int lane) {
  using Shape = Fp16AccumulationShape;
  const bool in_pairs = a.columns % 2 == 0;  // implies that pairs are aligned
#pragma unroll
  for (int i = 0; i < Shape::row_tiles; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = first_row + i * 16 + half * 8 + lane / 4;
      if (row >= a.rows) continue;
#pragma unroll
      for (int j = 0; j < Shape::column_tiles; ++j) {
        const int64_t column = first_column + j * 8 + lane % 4 * 2;
        const float first = results.accumulator[i][j][2 * half], second = results.accumulator[i][j][2 * half + 1];
        float* out = a.out + row * a.columns + column;
        if (in_pairs) {
          if (column < a.columns) store_pair(out, 0, first, second);
        } else {
          if (column < a.columns) out[0] = first;
          if (column + 1 < a.columns) out[1] = second;
        }
      }
    }
  }
}

// `rounds`: whether accumulators are rounded to Half.
template <bool rounds>
__global__ void __launch_bounds__(Fp16AccumulationShape::threads, 3)
    matmul_fp16_accumulation_kernel(const MatmulFp16Accumulation a, const int64_t column_blocks) {
  using Shape = Fp16AccumulationShape;
  using Tile = Shape::Tile;
  const int64_t row_block = blockIdx.x / column_blocks;
  const int64_t first_row = row_block * Shape::rows;
  const int64_t first_column = (blockIdx.x - row_block * column_blocks) * Shape::columns;
  const int warp_row = warp_in_block() / 2 * Shape::warp_rows;
  const int warp_column = warp_in_block() % 2 * Shape::warp_columns;

  SharedMemory shared;
  Half* x = shared.take<Half>(2 * Shape::x_elements);  // two buffers
  Half* weight = shared.take<Half>(2 * Shape::weight_elements);
  RowCopies<Shape::rows> x_copies(a.x + first_row * a.depth, a.depth, a.rows - first_row);
  RowCopies<Shape::columns> weight_copies(a.weight + first_column * a.depth, a.depth, a.columns - first_column);
  const auto copy_round = [&](int64_t k, int buffer) {
    x_copies.copy(Tile{x + buffer * Shape::x_elements}, a.depth - k);
    weight_copies.copy(Tile{weight + buffer * Shape::weight_elements}, a.depth - k);
    commit_copies();
  };

  Fp16AccumulationResults results;
  int64_t left_in_chunk = a.chunk;
  if (a.depth > 0) copy_round(0, 0);
  int buffer = 0;
  for (int64_t k = 0; k < a.depth; k += Shape::depth, buffer ^= 1) {
    wait_for_copies<0>();
    sync_threads();  // the round is loaded, and every warp has finished with the other buffer
    if (k + Shape::depth < a.depth) copy_round(k + Shape::depth, buffer ^ 1);
    const Tile own_x{x + buffer * Shape::x_elements + warp_row * Shape::depth};
    const Tile own_weight{weight + buffer * Shape::weight_elements + warp_column * Shape::depth};
#pragma unroll
    for (int step = 0; step < Shape::depth / Shape::step; ++step) {
      results.add_products(own_x, own_weight, step, lane_in_warp());
      left_in_chunk -= Shape::step;
      if (left_in_chunk > 0) continue;
      results.template end_chunk<rounds>();
      left_in_chunk = a.chunk;
    }
  }
  if (left_in_chunk < a.chunk) results.template end_chunk<rounds>();
  store_results(results, a, first_row + warp_row, first_column + warp_column, lane_in_warp());
}

void launch_matmul_fp16_accumulation(const MatmulFp16Accumulation& a, Stream stream) {
  using Shape = Fp16AccumulationShape;
  if (a.depth % 8 != 0 || a.chunk <= 0 || a.chunk % Shape::step != 0) {
    throw std::runtime_error("matmul_fp16_accumulation: the CUDA kernel takes depths by 8 and chunks by 16");
  }
  const int64_t column_blocks = ceil_div(a.columns, Shape::columns);
  const int64_t blocks = count_result_blocks(ceil_div(a.rows, Shape::rows), column_blocks);
  if (blocks == 0) return;
  const auto kernel = a.rounding ? matmul_fp16_accumulation_kernel<true> : matmul_fp16_accumulation_kernel<false>;
  launch(kernel, blocks, Shape::threads, Shape::shared_bytes_asked, stream, a, column_blocks);
}

}  // namespace vitfast
