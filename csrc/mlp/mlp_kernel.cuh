// The MLP of a transformer block in one kernel, for widths at which a tile's results fit registers: hidden units are
// computed, used and forgotten on chip.
//
// A block takes 128 rows (64 where there are few), a warp 16 of them: its results [16, C] stay in registers, its rows
// of x in shared memory. The weights come by from the second-level cache, 64 hidden units at a time, into one of two
// buffers while the other is worked on:
//
//     hidden [16, 64] = gelu(x [16, C] fc1ᵀ + bias)     a fragment of results becomes a fragment of operands
//     out [16, C] += hidden [16, 64] fc2ᵀ
//
// Both weights lie in shared memory as they do in global memory, rows by rows: [64, C] of fc1, [C, 64] of fc2. Behind
// the last column, row or hidden unit there are zeros.

#pragma once

#include "csrc/cuda/barrier.cuh"
#include "csrc/cuda/copy_async.cuh"
#include "csrc/cuda/matrix.cuh"
#include "csrc/cuda/pack.cuh"
#include "csrc/cuda/shared_memory.cuh"
#include "csrc/cuda/shared_tile.cuh"
#include "csrc/cuda/warp.cuh"
#include "csrc/linear/gelu.cuh"
#include "csrc/mlp/mlp.h"

namespace vitfast {

// `width`: the most channels.
template <typename T, int width, int warps_>
struct MlpShape {
  static constexpr int warps = warps_;
  static constexpr int threads = warps * warp_size;
  static constexpr int warp_rows = 16;
  static constexpr int rows = warps * warp_rows;
  static constexpr int units = 64;  // hidden units at a time
  static constexpr int column_tiles = width / 8, unit_tiles = units / 8;
  using Rows = SharedTile<T, width>;                     // of x, of fc1
  using TransposedRows = SharedTile<T, units>;           // of fc2
  static constexpr int weight_elements = units * width;  // of fc1 or fc2 in a buffer
  static constexpr int shared_bytes_asked = shared_bytes<T>(rows * width) + 2 * shared_bytes<T>(2 * weight_elements);
};

// Copies x [count, columns], whose rows are `stride` apart, into the first rows of a tile of `tile_rows`, zeros behind.
// The work is shared by `threads` threads.
template <int tile_rows, int threads, typename Tile, typename T>
__device__ __forceinline__ void copy_tile(
    const Tile& tile, const T* x, int64_t stride, int64_t count, int64_t columns, int thread) {
  for (int i = thread; i < tile_rows * Tile::chunks; i += threads) {
    const int row = i / Tile::chunks, chunk = i % Tile::chunks;
    const bool inside = row < count && chunk * Tile::chunk_size < columns;
    copy_async(tile.chunk(row, chunk), inside ? x + row * stride + chunk * Tile::chunk_size : x, inside);
  }
}

// d [16, 8 tiles] += a bᵀ of one step of 16 along the depth; `b_rows` [8 tiles, depth].
template <typename T, int tiles, typename Tile>
__device__ __forceinline__ void add_step(
    float (&d)[tiles][4], const uint32_t (&a)[4], const Tile& b_rows, int step, int lane) {
  static_assert(tiles % 2 == 0);
  // of two tiles, both halves of the depth; the permutation of chunks repeats every 8 rows
  const T* rows = b_rows.chunk(lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2);
#pragma unroll
  for (int tile = 0; tile < tiles; tile += 2) {
    uint32_t b[4];
    ldmatrix_x4(b, rows + tile * 8 * Tile::columns);
    mma_m16n8k16<T>(d[tile], a, b[0], b[1]);
    mma_m16n8k16<T>(d[tile + 1], a, b[2], b[3]);
  }
}

// d [16, 8 tiles] = a vector of `count` numbers in every row, zeros behind; or zeros.
template <typename T, int tiles>
__device__ __forceinline__ void fill_rows(float (&d)[tiles][4], const T* vector, int64_t count, int lane) {
#pragma unroll
  for (int tile = 0; tile < tiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int column = tile * 8 + lane % 4 * 2 + i;
      d[tile][i] = d[tile][i + 2] = vector != nullptr && column < count ? to_float(vector[column]) : 0.0f;
    }
  }
}

// Adds the residual, which lies in `rows`, to d [16, 8 tiles], and puts the result in its place.
template <typename T, int tiles, typename Tile>
__device__ __forceinline__ void add_and_round(const float (&d)[tiles][4], const Tile& rows, bool adds, int lane) {
#pragma unroll
  for (int tile = 0; tile < tiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t* place = reinterpret_cast<uint32_t*>(rows.chunk(lane / 4 + 8 * half, tile)) + lane % 4;
      float low = d[tile][2 * half], high = d[tile][2 * half + 1];
      if (adds) {
        const uint32_t pair = *place;
        low += to_float(T{uint16_t(pair)});
        high += to_float(T{uint16_t(pair >> 16)});
      }
      *place = round_to_pair<T>(low, high);
    }
  }
}

template <typename T, int width, int warps>
__global__ void __launch_bounds__(MlpShape<T, width, warps>::threads) mlp_kernel(const MlpForward a) {
  using Shape = MlpShape<T, width, warps>;
  using Rows = typename Shape::Rows;
  using TransposedRows = typename Shape::TransposedRows;
  const int channels = int(a.channels), thread = int(threadIdx.x);
  const int warp = warp_in_block();
  const int64_t first_row = int64_t(blockIdx.x) * Shape::rows;
  const int64_t warp_row = first_row + warp * Shape::warp_rows;

  SharedMemory shared;
  const Rows x{shared.take<T>(Shape::rows * width)};
  T* fc1 = shared.take<T>(2 * Shape::weight_elements);  // two buffers
  T* fc2 = shared.take<T>(2 * Shape::weight_elements);
  const Rows own{x.data + warp * Shape::warp_rows * width};  // this warp's rows of x, then of the residual and of out

  const auto copy_weights = [&](int64_t unit, int buffer) {
    const T* rows = static_cast<const T*>(a.fc1_weight) + unit * channels;
    const T* columns = static_cast<const T*>(a.fc2_weight) + unit;
    const int64_t units = a.hidden - unit;
    copy_tile<Shape::units, Shape::threads>(
        Rows{fc1 + buffer * Shape::weight_elements}, rows, channels, units, channels, thread);
    copy_tile<width, Shape::threads>(
        TransposedRows{fc2 + buffer * Shape::weight_elements}, columns, a.hidden, channels, units, thread);
  };
  const auto copy_own_rows = [&](const void* from) {
    const T* rows = static_cast<const T*>(from) + warp_row * channels;
    copy_tile<Shape::warp_rows, warp_size>(own, rows, channels, a.rows - warp_row, channels, lane_in_warp());
  };

  copy_own_rows(a.x);
  copy_weights(0, 0);
  commit_copies();
  float out[Shape::column_tiles][4];
  fill_rows(out, static_cast<const T*>(a.fc2_bias), channels, lane_in_warp());

  int buffer = 0;
  for (int64_t unit = 0; unit < a.hidden; unit += Shape::units, buffer ^= 1) {
    const int lane = opaque(lane_in_warp());
    wait_for_copies<0>();
    sync_threads();  // the weights are there, and every warp has done with the other buffer
    const bool is_last = unit + Shape::units >= a.hidden;
    if (!is_last) copy_weights(unit + Shape::units, buffer ^ 1);

    float hidden[Shape::unit_tiles][4];
    const T* bias = a.fc1_bias == nullptr ? nullptr : static_cast<const T*>(a.fc1_bias) + unit;
    fill_rows(hidden, bias, a.hidden - unit, lane);
#pragma unroll
    for (int step = 0; step < width / 16; ++step) {
      uint32_t fragment[4];
      ldmatrix_x4(fragment, own.chunk(lane % 16, 2 * step + lane / 16));
      add_step<T>(hidden, fragment, Rows{fc1 + buffer * Shape::weight_elements}, step, lane);
    }
    sync_warp();  // every lane has read its rows of x for the last time
    if (is_last && a.residual != nullptr) copy_own_rows(a.residual);
    commit_copies();

#pragma unroll
    for (int step = 0; step < Shape::units / 16; ++step) {
      uint32_t fragment[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float (&values)[4] = hidden[2 * step + i / 2];
        fragment[i] = round_to_pair<T>(gelu_erf<T>(values[i % 2 * 2]), gelu_erf<T>(values[i % 2 * 2 + 1]));
      }
      add_step<T>(out, fragment, TransposedRows{fc2 + buffer * Shape::weight_elements}, step, lane);
    }
  }

  const int lane = lane_in_warp();
  wait_for_copies<0>();
  sync_warp();  // the residual is there
  add_and_round<T>(out, own, a.residual != nullptr, lane);
  sync_warp();  // and the result
  for (int i = lane; i < Shape::warp_rows * Rows::chunks; i += warp_size) {
    const int row = i / Rows::chunks, chunk = i % Rows::chunks;
    if (warp_row + row >= a.rows || chunk * Rows::chunk_size >= channels) continue;
    T* target = static_cast<T*>(a.out) + (warp_row + row) * channels + chunk * Rows::chunk_size;
    store_pack(target, load_pack(own.chunk(row, chunk)));
  }
}

}  // namespace vitfast
