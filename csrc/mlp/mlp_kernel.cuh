// Fused MLP of a transformer block, for widths at which a tile of the output fits registers. Hidden activations never
// leave the chip.
//
// A block processes 128 rows (64 if there are few), a warp 16: output accumulators [16, C] are kept in registers, rows
// of x in shared memory. Weights are streamed from L2, 64 hidden units at a time, double-buffered:
//
//     hidden [16, 64] = gelu(x [16, C] fc1ᵀ + bias)     accumulator fragments are reused as operand fragments
//     out [16, C] += hidden [16, 64] fc2ᵀ
//
// Weights have the same layout in shared and in global memory: rows [64, C] of fc1 and [C, 64] of fc2. Columns, rows
// and hidden units past the end are zero.

#pragma once

#include <cstdint>
#include <stdexcept>

#include "csrc/common/chunks.h"
#include "csrc/cuda/launch.cuh"
#include "csrc/cuda/matrix.cuh"
#include "csrc/cuda/pack.cuh"
#include "csrc/cuda/shared_memory.cuh"
#include "csrc/cuda/shared_tile.cuh"
#include "csrc/cuda/threads.cuh"
#include "csrc/linear/gelu.cuh"

namespace vitfast {

// out = residual + fc2(gelu(fc1(x))), all of one 16-bit type; rows start at multiples of 16 bytes.
struct MlpForward {
  const void* x;           // [rows, C]
  const void* fc1_weight;  // [F, C]
  const void* fc1_bias;    // [F] or null
  const void* fc2_weight;  // [C, F]
  const void* fc2_bias;    // [C] or null
  const void* residual;    // [rows, C] or null
  void* out;               // [rows, C]; not the memory of x or of the residual
  int64_t rows;
  int64_t channels;  // C, a multiple of 8
  int64_t hidden;    // F, a multiple of 8
};

// `width`: upper bound of the channels.
template <typename T, int width, int warps_>
struct MlpShape {
  static constexpr int warps = warps_;
  static constexpr int threads = warps * warp_size;
  static constexpr int warp_rows = 16;
  static constexpr int rows = warps * warp_rows;
  static constexpr int units = 64;  // hidden units per iteration
  static constexpr int column_tiles = width / 8, unit_tiles = units / 8;
  using Rows = SharedTile<T, width>;                     // of x, of fc1
  using TransposedRows = SharedTile<T, units>;           // of fc2
  static constexpr int weight_elements = units * width;  // of fc1 or fc2, per buffer
  static constexpr int shared_bytes_asked = shared_bytes<T>(rows * width) + 2 * shared_bytes<T>(2 * weight_elements);
};

// Copies x [count, columns] with row stride `stride` into a tile of `tile_rows` rows, padded with zeros. `threads`
// threads share the work.
template <int tile_rows, int threads, typename Tile, typename T>
__device__ __forceinline__ void copy_tile(
    const Tile& tile, const T* x, int64_t stride, int64_t count, int64_t columns, int thread) {
  for (int i = thread; i < tile_rows * Tile::chunks; i += threads) {
    const int row = i / Tile::chunks, chunk = i % Tile::chunks;
    const bool inside = row < count && chunk * Tile::chunk_size < columns;
    copy_async(tile.chunk(row, chunk), inside ? x + row * stride + chunk * Tile::chunk_size : x, inside);
  }
}

// d [16, 8 tiles] += a bᵀ for one depth step of 16; `b_rows` [8 tiles, depth].
template <typename T, int tiles, typename Tile>
__device__ __forceinline__ void add_step(
    float (&d)[tiles][4], const uint32_t (&a)[4], const Tile& b_rows, int step, int lane) {
  static_assert(tiles % 2 == 0);
  // both depth halves of two tiles; the permutation of chunks repeats every 8 rows
  const T* rows = b_rows.chunk(lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2);
#pragma unroll
  for (int tile = 0; tile < tiles; tile += 2) {
    uint32_t b[4];
    ldmatrix_x4(b, rows + tile * 8 * Tile::columns);
    mma_m16n8k16<T>(d[tile], a, b[0], b[1]);
    mma_m16n8k16<T>(d[tile + 1], a, b[2], b[3]);
  }
}

// Broadcasts a vector of `count` numbers, or null for zeros, to the rows of d [16, 8 tiles], padded with zeros.
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

// Writes d [16, 8 tiles], plus the residual in `rows` if `adds`, to `rows`.
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
  const Rows own{x.data + warp * Shape::warp_rows * width};  // this warp's rows of x, later of the residual and of out

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
    sync_threads();  // the weights are loaded, and every warp has finished with the other buffer
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
    sync_warp();  // all lanes have read their rows of x for the last time
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
  sync_warp();  // the residual is loaded
  add_and_round<T>(out, own, a.residual != nullptr, lane);
  sync_warp();  // the result is complete
  for (int i = lane; i < Shape::warp_rows * Rows::chunks; i += warp_size) {
    const int row = i / Rows::chunks, chunk = i % Rows::chunks;
    if (warp_row + row >= a.rows || chunk * Rows::chunk_size >= channels) continue;
    T* target = static_cast<T*>(a.out) + (warp_row + row) * channels + chunk * Rows::chunk_size;
    store_pack(target, load_pack(own.chunk(row, chunk)));
  }
}

constexpr int mlp_max_channels = 192;
// bound used by vitfast/ops/mlp.py
static_assert(MlpShape<Half, mlp_max_channels, 8>::shared_bytes_asked == 144 * 1024);

template <typename T, int width, int warps>
void launch_mlp_instance(const MlpForward& a, Stream stream) {
  using Shape = MlpShape<T, width, warps>;
  launch(
      mlp_kernel<T, width, warps>, ceil_div(a.rows, Shape::rows), Shape::threads, Shape::shared_bytes_asked, stream, a);
}

// Every block reads all weights: use large tiles unless they leave half the multiprocessors of a large GPU idle.
template <typename T, int width>
void launch_mlp_width(const MlpForward& a, Stream stream) {
  constexpr int64_t few_blocks = 66;
  if (a.rows <= few_blocks * MlpShape<T, width, 8>::rows) return launch_mlp_instance<T, width, 4>(a, stream);
  launch_mlp_instance<T, width, 8>(a, stream);
}

// T: Half or BFloat16.
template <typename T>
void launch_mlp(const MlpForward& a, Stream stream) {
  if (a.rows == 0) return;
  if (a.channels > mlp_max_channels || a.channels % 8 != 0 || a.hidden % 8 != 0 || a.channels * a.hidden == 0) {
    throw std::runtime_error("mlp: the CUDA kernel takes up to 192 channels, and channels and hidden units by 8");
  }
  if (a.channels <= 64) return launch_mlp_width<T, 64>(a, stream);
  if (a.channels <= 128) return launch_mlp_width<T, 128>(a, stream);
  launch_mlp_width<T, 192>(a, stream);
}

}  // namespace vitfast
