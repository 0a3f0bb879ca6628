// GEMM whose accumulator is rounded after every chunk: register tiles, vectorized over the columns.

#pragma once

#include "csrc/cpu/matrix.h"
#include "csrc/quantize/round_vector_cpu_kernel.h"

namespace vitfast::VITFAST_ISA {

// Tile size: accumulators and chunk sums fill the registers.
constexpr int64_t accumulate_tile_rows = VITFAST_VECTOR_BYTES == 64 ? 6 : 3;
constexpr int64_t accumulate_tile_vectors = 2;
constexpr int64_t accumulate_tile_columns = accumulate_tile_vectors * width<float>;

// Packs one panel of the weight [columns, depth] as [depth, tile_columns], padded with zeros.
inline void pack_panel(const MatmulAccumulate& a, int64_t panel, float* packed) {
  for (int64_t i = 0; i < accumulate_tile_columns; i += width<float>) {
    const int64_t column = panel * accumulate_tile_columns + i;
    const float* rows = a.weight + column * a.depth;
    transpose_vector(rows, a.depth, a.columns - column, a.depth, packed + i, accumulate_tile_columns);
  }
}

// Rows past the end repeat the last row and are not stored.
template <typename Round>
VITFAST_INLINE void accumulate_tile(
    const MatmulAccumulate& a, int64_t first_row, int64_t first_column, const float* packed, const Round& round) {
  constexpr int64_t rows = accumulate_tile_rows, vectors = accumulate_tile_vectors;
  const float* x[rows];
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t row = first_row + r < a.rows ? first_row + r : a.rows - 1;
    x[r] = a.x + row * a.depth;
  }
  Vector<float> accumulator[rows][vectors] = {};
  for (int64_t begin = 0; begin < a.depth; begin += a.chunk) {
    const int64_t end = begin + a.chunk < a.depth ? begin + a.chunk : a.depth;
    Vector<float> sum[rows][vectors] = {};
    for (int64_t k = begin; k < end; ++k) {
      Vector<float> column[vectors];
      for (int64_t v = 0; v < vectors; ++v) column[v] = load(packed + k * accumulate_tile_columns + v * width<float>);
      for (int64_t r = 0; r < rows; ++r) {
        const Vector<float> element = broadcast(x[r][k]);
        for (int64_t v = 0; v < vectors; ++v) sum[r][v] = fused_multiply_add(element, column[v], sum[r][v]);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t v = 0; v < vectors; ++v) accumulator[r][v] = round(accumulator[r][v] + sum[r][v]);
    }
  }
  for (int64_t r = 0; r < rows && first_row + r < a.rows; ++r) {
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t column = first_column + v * width<float>;
      const int64_t left = a.columns - column;
      if (left <= 0) break;
      store_up_to<float>(
          a.out + (first_row + r) * a.columns + column, accumulator[r][v], left < width<float> ? left : width<float>);
    }
  }
}

// Tasks [begin, end) of panels * row_blocks: the row blocks of a panel are adjacent, so that it is packed once.
void matmul_accumulate(const MatmulAccumulate& a, int64_t begin, int64_t end) {
  constexpr int64_t block_rows = matmul_accumulate_block_rows;
  const int64_t row_blocks = ceil_div(a.rows, block_rows);
  const Scratch<float> packed(a.depth * accumulate_tile_columns + 1);
  with_rounding<float>(a.rounding, [&](auto round) __attribute__((always_inline)) {
    int64_t packed_panel = -1;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t panel = task / row_blocks, block = task % row_blocks;
      if (panel != packed_panel) pack_panel(a, panel, packed.data);
      packed_panel = panel;
      const int64_t first = block * block_rows;
      const int64_t last = first + block_rows < a.rows ? first + block_rows : a.rows;
      for (int64_t row = first; row < last; row += accumulate_tile_rows) {
        accumulate_tile(a, row, panel * accumulate_tile_columns, packed.data, round);
      }
    }
  });
}

int64_t matmul_accumulate_panels(int64_t columns) {
  return ceil_div(columns, accumulate_tile_columns);
}

}  // namespace vitfast::VITFAST_ISA
