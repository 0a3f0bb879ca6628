// Sums of a tile's columns on the way to memory, always in the same order: first within each warp or group of rows, by
// the functions below, then over these in ascending order. A tile writes its own row of partial sums: no two blocks add
// to the same number.

#pragma once

#include "csrc/cuda/warp.cuh"

namespace vitfast {

// What a thread has of the results of a warp group, `tiles` side by side: of each tile [16, 8] of its warp four
// numbers, as mma_m16n8k16 and wgmma leave them. Rows are lane / 4 and that plus 8, columns 2 (lane % 4) and the next
// one.
constexpr int column_sum_tiles = 4;
constexpr int column_sum_columns = 8 * column_sum_tiles;
constexpr int column_sum_values = 4 * column_sum_tiles;

// Writes the sums of 32 columns over the warp's 16 rows to `sums` [32], a column for each lane. `rows_left`: how many
// rows there are from the thread's first one on; those behind the last row do not count.
template <typename Values>
__device__ __forceinline__ void sum_fragment_columns(float* sums, const Values& values, int rows_left, int lane) {
  float columns[2 * column_sum_tiles];
#pragma unroll
  for (int i = 0; i < 2 * column_sum_tiles; ++i) {
    const int first = i / 2 * 4 + i % 2;
    columns[i] = (rows_left > 0 ? values[first] : 0.0f) + (rows_left > 8 ? values[first + 2] : 0.0f);
  }
  // each exchange halves the columns of a lane and doubles the rows in its sums
#pragma unroll
  for (int half = column_sum_tiles, mask = 16; half > 0; half /= 2, mask /= 2) {
    const bool keeps_upper = (lane & mask) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float given = keeps_upper ? columns[i] : columns[i + half];
      const float kept = keeps_upper ? columns[i + half] : columns[i];
      columns[i] = kept + shuffle_xor(given, mask);
    }
  }
  const int kept_column = lane / 4;  // bits 4, 3 and 2 have chosen
  sums[kept_column / 2 * 8 + lane % 4 * 2 + kept_column % 2] = columns[0];
}

// The sum of a column over groups of rows whose sums lie in `sums` [groups, columns].
template <int groups, int columns>
__device__ __forceinline__ float sum_groups(const float* sums, int column) {
  float sum = 0.0f;
#pragma unroll
  for (int group = 0; group < groups; ++group) sum += sums[group * columns + column];
  return sum;
}

}  // namespace vitfast
