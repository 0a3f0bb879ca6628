// matrix x matrixᵀ for a sparse matrix with few nonzero elements per row.
//
// One kernel lists the nonzero elements of the matrix. A block of the other kernel processes a head: x is transposed in
// shared memory, and panels of columns pass through
//
//     columns [coarse, panel] = x matrixᵀ     four columns per warp, one row of x per lane
//     out [fine, panel] = matrix columns      four rows per warp, one column of the panel per lane
//
// A warp combines source rows for four adjacent rows of the matrix at once: on a grid these share most of their nonzero
// columns.

#pragma once

#include <cstdint>
#include <stdexcept>

#include "csrc/cuda/launch.cuh"
#include "csrc/cuda/numbers.cuh"
#include "csrc/cuda/pack.cuh"
#include "csrc/cuda/shared_memory.cuh"
#include "csrc/cuda/threads.cuh"
#include "csrc/upsample_relations/upsample_relations.h"

namespace vitfast {

constexpr int relation_threads = 256, relation_warps = relation_threads / warp_size;

// Lists the nonzero columns of each group of rows; one warp per group.
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

// Panel of a block: `lane_columns` columns per lane.
template <typename T, int lane_columns>
struct RelationPanel {
  static constexpr int columns = warp_size * lane_columns;
  static constexpr int stride = columns + 4;  // an odd number of packs: the packs of eight rows are in different banks

  // odd, so that transposed writes have few bank conflicts
  __host__ __device__ static constexpr int x_stride(int coarse) { return coarse | 1; }

  __host__ __device__ static constexpr int bytes(int coarse) {
    return shared_bytes<T>(coarse * x_stride(coarse)) + shared_bytes<float>(coarse * stride);
  }
};

// target[j * stride + i] = x[i, j] of a head. Reads x by rows or by columns, whichever have the smaller stride.
template <typename T>
__device__ __forceinline__ void load_transposed(
    T* target, int stride, const T* x, int64_t row_stride, int64_t column_stride, int size) {
  constexpr int lines = 4, rounds = 4;  // in flight at once
  const bool by_rows = column_stride <= row_stride;
  const int64_t from_line = by_rows ? row_stride : column_stride, from_place = by_rows ? column_stride : row_stride;
  const int to_line = by_rows ? 1 : stride, to_place = by_rows ? stride : 1;
  for (int first_line = warp_in_block(); first_line < size; first_line += lines * relation_warps) {
    for (int first_place = lane_in_warp(); first_place < size; first_place += rounds * warp_size) {
      T values[lines][rounds];
      const auto for_each_place = [&](const auto& f) {
#pragma unroll
        for (int i = 0; i < lines; ++i) {
#pragma unroll
          for (int j = 0; j < rounds; ++j) {
            const int line = first_line + i * relation_warps, place = first_place + j * warp_size;
            if (line < size && place < size) f(values[i][j], line, place);
          }
        }
      };
      for_each_place([&](T& value, int line, int place) { value = x[line * from_line + place * from_place]; });
      for_each_place([&](const T& value, int line, int place) { target[line * to_line + place * to_place] = value; });
    }
  }
}

// sums[i][k] += (row i of the group) * (column `first` + lane + 32 k of the source), for columns below `end`. Zeros of
// the matrix are skipped, so that they do not propagate NaN or infinity.
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

// Grid [images * heads, parts]: a block processes every parts-th panel of a head.
template <typename T, int lane_columns>
__global__ void __launch_bounds__(relation_threads)
    upsample_relations_kernel(const UpsampleRelationsOnDevice a, const int64_t parts) {
  using Panel = RelationPanel<T, lane_columns>;
  constexpr int rounds = 4;  // of 32 rows of x, in the first GEMM
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
  load_transposed(transposed, x_stride, x, a.row_stride, a.column_stride, coarse);

  for (int64_t first = part * Panel::columns; first < fine; first += parts * Panel::columns) {
    const int panel = int(fine - first < Panel::columns ? fine - first : Panel::columns);
    sync_threads();  // x is loaded, and all warps have read the previous panel
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
    sync_threads();  // the panel is complete
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

constexpr int relation_wide = 4, relation_narrow = 1;  // columns of a lane
constexpr int relation_max_bytes = 227 * 1024;         // largest shared memory of any supported GPU

// bounds used by vitfast/ops/upsample_relations.py
static_assert(RelationPanel<float, relation_narrow>::bytes(197) <= 4 * 197 * 197 + 144 * 197 + 16);
static_assert(RelationPanel<Half, relation_narrow>::bytes(50) <= 2 * 50 * 51 + 144 * 50 + 16);

template <typename T, int lane_columns>
void launch_upsample_relations_instance(const UpsampleRelationsOnDevice& a, Stream stream) {
  using Panel = RelationPanel<T, lane_columns>;
  const int64_t groups = a.groups.groups(), heads = a.images * a.heads;
  const int64_t listing_blocks = ceil_div(groups, relation_warps);
  // every block loads all of x, so a head is split only where there are too few heads for a large GPU
  constexpr int64_t enough_blocks = 2 * 132;
  const int64_t panels = ceil_div(a.groups.fine, Panel::columns), wanted = ceil_div(enough_blocks, heads);
  const int64_t parts = wanted < panels ? wanted : panels;
  if (listing_blocks > INT32_MAX || heads * parts > INT32_MAX) {
    throw std::runtime_error("upsample_relations: the CUDA kernel takes up to 2^31 - 1 panels of 32 columns");
  }
  launch(list_relations_kernel, listing_blocks, relation_threads, 0, stream, a.groups, groups);
  const auto kernel = upsample_relations_kernel<T, lane_columns>;
  launch(kernel, heads * parts, relation_threads, Panel::bytes(a.groups.coarse), stream, a, parts);
}

// T: float, Half or BFloat16. The result must not be empty, and the matrix must have a column.
template <typename T>
void launch_upsample_relations(const UpsampleRelationsOnDevice& a, Stream stream) {
  constexpr int two_blocks_bytes = 113 * 1024;  // two such blocks fit a multiprocessor of sm_90
  const int coarse = a.groups.coarse;
  if (coarse > relation_max_coarse || RelationPanel<T, relation_narrow>::bytes(coarse) > relation_max_bytes) {
    throw std::runtime_error("upsample_relations: a head of x does not fit the shared memory of a block");
  }
  if (RelationPanel<T, relation_wide>::bytes(coarse) <= two_blocks_bytes) {
    return launch_upsample_relations_instance<T, relation_wide>(a, stream);
  }
  launch_upsample_relations_instance<T, relation_narrow>(a, stream);
}

}  // namespace vitfast
