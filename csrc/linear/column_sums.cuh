// Deterministic column sums in GEMM epilogues: first within each warp or group of rows, then over these in ascending
// order. Each tile writes its own row of partial sums; there are no atomics.

#pragma once

#include "csrc/cuda/threads.cuh"

namespace vitfast {

// A thread's values of adjacent accumulator tiles [16, 8] in the layout of mma_m16n8k16 and wgmma: per tile, rows
// lane / 4 and lane / 4 + 8, columns 2 (lane % 4) and the next one.
constexpr int column_sum_tiles = 4;
constexpr int column_sum_columns = 8 * column_sum_tiles;
constexpr int column_sum_values = 4 * column_sum_tiles;

// Writes the sums of 32 columns over the warp's 16 rows to `sums` [32], one column per lane. `rows_left`: number of
// matrix rows from the thread's first row on; rows past the end are not added.
template <typename Values>
__device__ __forceinline__ void sum_fragment_columns(float* sums, const Values& values, int rows_left, int lane) {
  float columns[2 * column_sum_tiles];
#pragma unroll
  for (int i = 0; i < 2 * column_sum_tiles; ++i) {
    const int first = i / 2 * 4 + i % 2;
    columns[i] = (rows_left > 0 ? values[first] : 0.0f) + (rows_left > 8 ? values[first + 2] : 0.0f);
  }
  // each exchange halves the number of columns per lane and doubles the rows in their sums
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
  const int kept_column = lane / 4;  // selected by bits 4, 3 and 2
  sums[kept_column / 2 * 8 + lane % 4 * 2 + kept_column % 2] = columns[0];
}

// Adds `sums` [groups, columns] over the groups.
template <int groups, int columns>
__device__ __forceinline__ float sum_groups(const float* sums, int column) {
  float sum = 0.0f;
#pragma unroll
  for (int group = 0; group < groups; ++group) sum += sums[group * columns + column];
  return sum;
}

}  // namespace vitfast
