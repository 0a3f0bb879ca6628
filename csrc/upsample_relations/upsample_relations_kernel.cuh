// matrix x matrixᵀ for a matrix with few nonzero elements a row, on the device.
//
// One kernel lists the matrix's nonzero elements. A block of the other takes a head: x lies transposed in shared
// memory, and a panel of columns at a time passes through
//
//     columns [coarse, panel] = x matrixᵀ     four columns a warp, a lane to each row of x
//     out [fine, panel] = matrix columns      four rows a warp, a lane to each column of the panel
//
// A warp combines rows of its source for four neighbouring rows of the matrix at once: on a grid they share most of
// what they read.

#pragma once

#include "csrc/cuda/arithmetic.cuh"
#include "csrc/cuda/barrier.cuh"
#include "csrc/cuda/grid.cuh"
#include "csrc/cuda/numbers.cuh"
#include "csrc/cuda/pack.cuh"
#include "csrc/cuda/shared_memory.cuh"
#include "csrc/cuda/warp.cuh"
#include "csrc/upsample_relations/upsample_relations.h"

namespace vitfast {

constexpr int relation_threads = 256, relation_warps = relation_threads / warp_size;

// A warp to each group of the matrix's rows.
__global__ void __launch_bounds__(relation_threads)
    list_relations_kernel(const RelationGroups a, const int64_t groups) {
  const int64_t group = thread_in_grid() / warp_size;
  if (group >= groups) return;
  int count = 0;
  for (int first = 0; first < a.coarse; first += warp_size) {
    const int column = first + lane_in_warp();
    Pack<float> weights;
    bool is_used = false;
#pragma unroll
    for (int i = 0; i < relation_group; ++i) {
      const int64_t row = group * relation_group + i;
      const bool is_there = row < a.fine && column < a.coarse;
      weights.element[i] = is_there ? a.matrix[row * a.matrix_row_stride + column * a.matrix_column_stride] : 0.0f;
      is_used = is_used || weights.element[i] != 0.0f;
    }
    const Votes votes = count_votes(is_used);
    if (is_used) {
      const int64_t entry = group * a.coarse + count + votes.below;
      a.columns[entry] = column;
      store_pack(a.weights + entry * relation_group, weights);
    }
    count += votes.all;
  }
  if (lane_in_warp() == 0) a.counts[group] = count;
}

// A block's panel: `lane_columns` columns for each lane.
template <typename T, int lane_columns>
struct RelationPanel {
  static constexpr int columns = warp_size * lane_columns;
  static constexpr int stride = columns + 4;  // an odd number of packs: eight rows' packs meet all banks

  // Rows of x lie apart by an odd number of elements, so that what is written transposed meets few banks twice.
  __host__ __device__ static constexpr int x_stride(int coarse) { return coarse | 1; }

  __host__ __device__ static constexpr int bytes(int coarse) {
    return shared_bytes<T>(coarse * x_stride(coarse)) + shared_bytes<float>(coarse * stride);
  }
};

// target[j * stride + i] = x[i, j] of a head, a row (or, where these are closer together in memory, a column) at a
// time.
template <typename T>
__device__ __forceinline__ void bring_transposed(
    T* target, int stride, const T* x, int64_t row_stride, int64_t column_stride, int size) {
  constexpr int lines = 4, rounds = 4;  // under way at once
  const bool by_rows = column_stride <= row_stride;
  const int64_t from_line = by_rows ? row_stride : column_stride, from_place = by_rows ? column_stride : row_stride;
  const int to_line = by_rows ? 1 : stride, to_place = by_rows ? stride : 1;
  for (int first_line = warp_in_block(); first_line < size; first_line += lines * relation_warps) {
    for (int first_place = lane_in_warp(); first_place < size; first_place += rounds * warp_size) {
      T values[lines][rounds];
#pragma unroll
      for (int i = 0; i < lines; ++i) {
        const int line = first_line + i * relation_warps;
#pragma unroll
        for (int j = 0; j < rounds; ++j) {
          const int place = first_place + j * warp_size;
          if (line < size && place < size) values[i][j] = x[line * from_line + place * from_place];
        }
      }
#pragma unroll
      for (int i = 0; i < lines; ++i) {
        const int line = first_line + i * relation_warps;
#pragma unroll
        for (int j = 0; j < rounds; ++j) {
          const int place = first_place + j * warp_size;
          if (line < size && place < size) target[line * to_line + place * to_place] = values[i][j];
        }
      }
    }
  }
}

// sums[i][k] += the matrix's row i of the group times the source's column `first` + lane + 32 k, of columns up to
// `end`. Zeros of the matrix take no part.
template <int rounds, typename S>
__device__ __forceinline__ void combine_group(
    const RelationGroups& a,
    int64_t group,
    const S* source,
    int stride,
    int first,
    int end,
    float (&sums)[relation_group][rounds]) {
  const int count = a.counts[group];
  for (int64_t entry = group * a.coarse; entry < group * a.coarse + count; ++entry) {
    const S* row = source + a.columns[entry] * stride;
    const Pack<float> weights = load_pack(a.weights + entry * relation_group);
    float values[rounds];
#pragma unroll
    for (int k = 0; k < rounds; ++k) {
      const int place = first + lane_in_warp() + k * warp_size;
      values[k] = place < end ? to_float(row[place]) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < relation_group; ++i) {
      if (weights.element[i] == 0.0f) continue;
#pragma unroll
      for (int k = 0; k < rounds; ++k) sums[i][k] = fused_multiply_add(weights.element[i], values[k], sums[i][k]);
    }
  }
}

// Blocks [images * heads, parts]: a block takes every parts-th panel of a head.
template <typename T, int lane_columns>
__global__ void __launch_bounds__(relation_threads)
    upsample_relations_kernel(const UpsampleRelationsOnDevice a, const int64_t parts) {
  using Panel = RelationPanel<T, lane_columns>;
  constexpr int rounds = 4;  // of 32 rows of x, in the first product
  const RelationGroups& groups = a.groups;
  const int coarse = groups.coarse, x_stride = Panel::x_stride(coarse);
  const int64_t fine = groups.fine;
  const int64_t head = blockIdx.x / parts, part = blockIdx.x - head * parts;
  const int64_t image = head / a.heads;
  const T* x = static_cast<const T*>(a.x) + image * a.image_stride + (head - image * a.heads) * a.head_stride;
  T* out = static_cast<T*>(a.out) + head * fine * fine;

  SharedMemory shared;
  T* transposed = shared.take<T>(coarse * x_stride);
  float* columns = shared.take<float>(coarse * Panel::stride);
  bring_transposed(transposed, x_stride, x, a.row_stride, a.column_stride, coarse);

  for (int64_t first = part * Panel::columns; first < fine; first += parts * Panel::columns) {
    const int panel = int(fine - first < Panel::columns ? fine - first : Panel::columns);
    sync_threads();  // x is there, and every warp has read the panel before
    for (int place = warp_in_block() * relation_group; place < panel; place += relation_warps * relation_group) {
      for (int row = 0; row < coarse; row += rounds * warp_size) {
        float sums[relation_group][rounds] = {};
        combine_group(groups, (first + place) / relation_group, transposed, x_stride, row, coarse, sums);
#pragma unroll
        for (int k = 0; k < rounds; ++k) {
          const int of_lane = row + lane_in_warp() + k * warp_size;
          if (of_lane >= coarse) continue;
          store_pack(columns + of_lane * Panel::stride + place, {sums[0][k], sums[1][k], sums[2][k], sums[3][k]});
        }
      }
    }
    sync_threads();  // the panel is there
    for (int64_t group = warp_in_block(); group * relation_group < fine; group += relation_warps) {
      float sums[relation_group][lane_columns] = {};
      combine_group(groups, group, columns, Panel::stride, 0, panel, sums);
#pragma unroll
      for (int i = 0; i < relation_group; ++i) {
        const int64_t row = group * relation_group + i;
        if (row >= fine) break;
#pragma unroll
        for (int k = 0; k < lane_columns; ++k) {
          const int column = lane_in_warp() + k * warp_size;
          if (column < panel) out[row * fine + first + column] = round_to<T>(sums[i][k]);
        }
      }
    }
  }
}

}  // namespace vitfast
