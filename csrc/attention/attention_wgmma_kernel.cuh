// Attention forward on the asynchronous tensor cores of sm_90a, for up to 200 tokens and heads of up to 64 columns,
// without bias and logits.
//
// A block is one warpgroup. It keeps K and V of one head in shared memory and processes tiles of 64 queries, whose
// logits stay in its registers:
//
//     logits [64, N] = q [64, D] kᵀ      wgmma of 64 x N x 16, both operands in shared memory
//     weights = exp2(logits - maximum)   in registers: fragments of logits become fragments of weights
//     out [64, D] = weights v / sum      wgmma of 64 x 64 x 16; N padded to a multiple of 16 with zero weights
//
// Unlike mma.sync, for which every 16 queries load K and V from shared memory to registers again, wgmma reads them in
// place. Blocks per multiprocessor overlap: while some wait for memory, others compute.
//
// Rows of K and V past the last token and columns past the head dimension are zero in shared memory. The last tile of
// queries has rows past the last token: zero as well, and not written.

#pragma once

#include "csrc/attention/attention_gemm.cuh"
#include "csrc/attention/attention_softmax.cuh"
#include "csrc/cuda/shared_tile.cuh"
#include "csrc/cuda/threads.cuh"
#include "csrc/cuda/wgmma.cuh"

namespace vitfast {

constexpr int attention_wgmma_columns = 64;  // of K, V, queries and results in shared memory

// Shared memory in elements.
template <int key_tiles>
struct AttentionWgmmaMemory {
  static constexpr int padded_tiles = (key_tiles + 1) / 2 * 2;  // the depth of weights v is a multiple of 16
  static constexpr int keys = 0;
  static constexpr int values = keys + key_tiles * 8 * attention_wgmma_columns;
  static constexpr int queries = values + padded_tiles * 8 * attention_wgmma_columns;
  static constexpr int results = queries + wgmma_rows * attention_wgmma_columns;
  static constexpr int elements = results + wgmma_rows * attention_wgmma_columns;
  static constexpr int bytes = elements * 2;
};

// Like copy_rows, with fewer registers: each thread of the warpgroup copies one column of chunks.
template <int tile_rows, typename T>
__device__ __forceinline__ void copy_columns(
    const SharedTile<T, attention_wgmma_columns>& tile,
    const Attention& a,
    const HeadsView& view,
    unsigned head,
    int first_row) {
  using Tile = SharedTile<T, attention_wgmma_columns>;
  constexpr int rows_at_once = warpgroup_size / Tile::chunks;
  static_assert(rows_at_once % 8 == 0);  // the permutation of chunks repeats every 8 rows
  const int first = int(threadIdx.x) / Tile::chunks, chunk = int(threadIdx.x) % Tile::chunks;
  const bool has_column = chunk * Tile::chunk_size < a.head_dim;
  const int rows = has_column ? int(a.tokens) - first_row - first : 0;
  const T* source = head_rows<const T>(a, view, head, first_row + first) + (has_column ? chunk * Tile::chunk_size : 0);
  T* target = tile.chunk(first, chunk);
  const int64_t step = rows_at_once * view.token_stride;
#pragma unroll
  for (int row = 0; row < tile_rows; row += rows_at_once) {
    if (row + rows_at_once > tile_rows && row + first >= tile_rows) break;
    const bool inside = row < rows;
    copy_async(target + row * attention_wgmma_columns, inside ? source : view.data, inside);
    source += step;
  }
}

// logits [64, 8 key_tiles] = queries keysᵀ.
template <typename T, int key_tiles>
__device__ __forceinline__ void wgmma_logits(float (&logits)[key_tiles][4], const T* queries, const T* keys) {
  constexpr int step_bytes = 32;
  const WgmmaOperand a(queries), b(keys);
  begin_wgmma();
  wgmma_transposed<T, false>(logits, a.descriptor, b.descriptor);
#pragma unroll
  for (int step = 1; step < attention_wgmma_columns / 16; ++step) {
    wgmma_transposed<T, true>(logits, a.advanced(step * step_bytes), b.advanced(step * step_bytes));
  }
  commit_wgmma();
  wait_for_wgmma(logits);
}

// out [64, 64] = weights values.
template <typename T, int padded_tiles>
__device__ __forceinline__ void wgmma_values(
    float (&out)[attention_wgmma_columns / 8][4], uint32_t (&weights)[padded_tiles][2], const T* values) {
  constexpr int step_bytes = 16 * attention_wgmma_columns * int(sizeof(T));
  const WgmmaOperand b(values);
  finish_registers(weights);
  begin_wgmma();
  wgmma_of_registers<T, false>(out, weights[0], weights[1], b.descriptor);
#pragma unroll
  for (int step = 1; step < padded_tiles / 2; ++step) {
    wgmma_of_registers<T, true>(out, weights[2 * step], weights[2 * step + 1], b.advanced(step * step_bytes));
  }
  commit_wgmma();
  wait_for_wgmma(out);
}

// Like softmax_rows, but with the scale, which must be positive, inside the exponent: one instruction per logit less.
// The first `full_tiles` tiles have no columns past a.tokens.
template <typename T, int full_tiles, int key_tiles, int padded_tiles>
__device__ __forceinline__ void softmax_unscaled_rows(
    const AttentionForward& a,
    const float (&logits)[key_tiles][4],
    uint32_t (&weights)[padded_tiles][2],
    float (&inverse_sums)[2],
    const LaneRows& at) {
  const int tokens = int(a.tokens);
  const float scale = float(a.scale) * log2_of_e;
  float maxima[4] = {-infinity, -infinity, -infinity, -infinity};  // two chains of dependent instructions per row
#pragma unroll
  for (int tile = 0; tile < key_tiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool hidden = tile >= full_tiles && at.column + tile * 8 + i % 2 >= tokens;
      maxima[i] = fmaxf(maxima[i], hidden ? -infinity : logits[tile][i]);
    }
  }
  float shifts[2], sums[2] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    shifts[half] = shift_of(maximum_over<4>(fmaxf(maxima[2 * half], maxima[2 * half + 1])) * scale);
  }
  // Both rows of a tile at a time, the last tile first: its weights take over the registers of its logits, and those of
  // the first tiles become free for the output. Masked again rather than above, which would need registers for masked
  // logits besides the ones that wgmma wrote; opaque, because nvcc would find that the masks are the same.
  const int column = opaque(at.column);
#pragma unroll
  for (int tile = key_tiles - 1; tile >= 0; --tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float low = exp2_approximate(fused_multiply_add(logits[tile][2 * half], scale, -shifts[half]));
      float high = exp2_approximate(fused_multiply_add(logits[tile][2 * half + 1], scale, -shifts[half]));
      if (tile >= full_tiles) {
        low = column + tile * 8 >= tokens ? 0.0f : low;
        high = column + tile * 8 + 1 >= tokens ? 0.0f : high;
      }
      sums[half] += low + high;
      weights[tile][half] = round_to_pair<T>(low, high);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const bool writer = at.column == 0 && a.lse != nullptr;
    inverse_sums[half] = close_row(a, at.head, at.row[half], shifts[half], sums[half], writer);
  }
}

// Blocks per multiprocessor: leaves 80, 96, 128 or 168 registers per thread.
constexpr int attention_wgmma_blocks_at_once(int key_tiles) {
  return key_tiles <= 7 ? 6 : key_tiles <= 13 ? 5 : key_tiles <= 19 ? 4 : 3;
}

// Supports 8 * full_tiles < tokens <= 8 * key_tiles, 16-byte aligned rows and a positive scale. `blocks_per_head`
// blocks share the tiles of a head; each must have one.
template <typename T, int full_tiles, int key_tiles>
__global__ void __launch_bounds__(warpgroup_size, attention_wgmma_blocks_at_once(key_tiles))
    attention_wgmma_kernel(const AttentionForward a, const int blocks_per_head) {
  using Memory = AttentionWgmmaMemory<key_tiles>;
  using Tile = SharedTile<T, attention_wgmma_columns>;
  extern __shared__ __align__(swizzle_alignment) unsigned char attention_wgmma_memory[];
  T* memory = reinterpret_cast<T*>(attention_wgmma_memory);

  const int warp = warp_in_block(), tiles = int(ceil_div(a.tokens, wgmma_rows));
  const unsigned head = blockIdx.x / unsigned(blocks_per_head);
  const int first_tile = int(blockIdx.x - head * unsigned(blocks_per_head));  // of the block
  const Tile keys{memory + Memory::keys}, values{memory + Memory::values}, queries{memory + Memory::queries};
  const Tile results{memory + Memory::results + warp * attention_tile_rows * attention_wgmma_columns};  // of this warp

  copy_columns<wgmma_rows>(queries, a, a.q, head, first_tile * wgmma_rows);
  copy_columns<key_tiles * 8>(keys, a, a.k, head, 0);
  commit_copies();
  copy_columns<Memory::padded_tiles * 8>(values, a, a.v, head, 0);
  commit_copies();

  for (int tile = first_tile; tile < tiles; tile += blocks_per_head) {
    const int lane = opaque(lane_in_warp()), first_row = tile * wgmma_rows + warp * attention_tile_rows;
    if (tile == first_tile) {
      wait_for_copies<1>();  // queries and keys; the values may be in flight
    } else {
      wait_for_copies<0>();
    }
    publish_to_tensor_cores();
    sync_threads();

    float logits[key_tiles][4];
    wgmma_logits(logits, queries.data, keys.data);
    sync_threads();  // every warp has read the queries, which the next ones overwrite
    if (tile + blocks_per_head < tiles) {
      copy_columns<wgmma_rows>(queries, a, a.q, head, (tile + blocks_per_head) * wgmma_rows);
    }
    commit_copies();

    // Also of rows past the last token: a branch around it costs registers.
    uint32_t weights[Memory::padded_tiles][2] = {};
    float inverse_sums[2];
    const LaneRows at{head, {first_row + lane / 4, first_row + lane / 4 + 8}, lane % 4 * 2};
    softmax_unscaled_rows<T, full_tiles>(a, logits, weights, inverse_sums, at);
    if (tile == first_tile) {
      wait_for_copies<1>();  // the values; the next queries may be in flight
      publish_to_tensor_cores();
      sync_threads();
    }
    float out[attention_wgmma_columns / 8][4];
    wgmma_values(out, weights, values.data);
    // ordered after the last use of `results` by the barriers above
    if (first_row < a.tokens) store_rows(a, a.out, head, first_row, out, inverse_sums, results, lane);
  }
}

}  // namespace vitfast
