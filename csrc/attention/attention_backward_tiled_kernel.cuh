// Attention backward for any number of tokens; equations in attention_gradient.cuh. Two kernels, in this order:
//
//     queries: a warp owns 16 queries, K and V are streamed in tiles
//         S = q kᵀ,  dP = grad_out vᵀ,  grad_q += dS k;  also writes grad_bias, and lse and D of its rows for the
//     keys: a warp owns 16 keys, q and grad_out are streamed in tiles
//         Sᵀ = k qᵀ,  dPᵀ = v grad_outᵀ,  grad_v += Pᵀ grad_out,  grad_k += dSᵀ q
//
// S and dP are computed twice: seven GEMMs instead of five. In return every sum is accumulated in the registers of one
// warp in a fixed order, without atomics. Fragments of P and dS become A fragments in registers. Streamed tiles are
// double-buffered: one barrier per tile, and the next tile is copied while the current one is processed. Rows past the
// last token are zero in shared memory.

#pragma once

#include "csrc/attention/attention_gemm.cuh"
#include "csrc/attention/attention_gradient.cuh"
#include "csrc/cuda/shared_memory.cuh"
#include "csrc/cuda/threads.cuh"

namespace vitfast {

// Sizes of an instance of either kernel, for head dimensions up to `head_dim`: tiles of 8 `streamed_tiles` rows,
// `blocks_at_once` blocks per multiprocessor.
template <typename T, int head_dim_, int streamed_tiles_, int blocks_at_once_>
struct AttentionBackwardTiles {
  static constexpr int head_dim = head_dim_;
  static constexpr int own_rows = attention_warps * attention_tile_rows;
  static constexpr int streamed_tiles = streamed_tiles_;
  static constexpr int blocks_at_once = blocks_at_once_;
  static constexpr int streamed_rows = 8 * streamed_tiles;
  static constexpr int own_size = own_rows * head_dim, streamed_size = streamed_rows * head_dim;
  static constexpr int row_bytes = 2 * shared_bytes<T>(own_size) + 2 * shared_bytes<T>(2 * streamed_size);
  static constexpr int queries_bytes = row_bytes + 2 * shared_bytes<float>(own_rows);
  static constexpr int keys_bytes = row_bytes + 2 * shared_bytes<float>(2 * streamed_rows);
  using Tile = SharedTile<T, head_dim>;

  // One of two buffers.
  static __device__ __forceinline__ Tile streamed(T* buffers, int tile) {
    return Tile{buffers + tile % 2 * streamed_size};
  }

  // Starts the copies of the rows that the block owns, and of a streamed tile.
  static __device__ __forceinline__ void copy_own(
      const Attention& a, const HeadsView& view, unsigned head, T* target, int first_row) {
    copy_rows(Tile{target}, own_rows, a, view, head, first_row, opaque(int(threadIdx.x)), attention_threads);
  }
  static __device__ __forceinline__ void copy_streamed(
      const Attention& a, const HeadsView& view, unsigned head, T* buffers, int tile) {
    const int first_row = tile * streamed_rows, thread = opaque(int(threadIdx.x));
    copy_rows(streamed(buffers, tile), streamed_rows, a, view, head, first_row, thread, attention_threads);
  }
};

// RowStatistics of all rows, passed from the first kernel to the second.
struct AttentionRowStatistics {
  float* data;      // [B, H, 2, padded_rows]
  int padded_rows;  // a multiple of own_rows

  __device__ __forceinline__ float* lse(unsigned head) const { return data + int64_t(head) * 2 * padded_rows; }
  __device__ __forceinline__ float* dots(unsigned head) const { return lse(head) + padded_rows; }
};

template <typename T, typename Tiles>
__global__ void __launch_bounds__(attention_threads, Tiles::blocks_at_once)
    attention_backward_queries_kernel(const AttentionBackward a, const AttentionRowStatistics statistics) {
  using Tile = SharedTile<T, Tiles::head_dim>;
  constexpr int key_tiles = Tiles::streamed_tiles;
  const unsigned blocks_per_head = unsigned(a.tokens + Tiles::own_rows - 1) / Tiles::own_rows;
  const unsigned head = blockIdx.x / blocks_per_head;
  const int block_row = int(blockIdx.x - head * blocks_per_head) * Tiles::own_rows;
  const int tokens = int(a.tokens), lane = lane_in_warp(), warp_row = warp_in_block() * attention_tile_rows;
  const int first_query = block_row + warp_row;

  SharedMemory shared;
  T* queries = shared.take<T>(Tiles::own_size);
  T* out_grads = shared.take<T>(Tiles::own_size);
  T* keys = shared.take<T>(2 * Tiles::streamed_size);
  T* values = shared.take<T>(2 * Tiles::streamed_size);
  float* own_lse = shared.take<float>(Tiles::own_rows);
  float* own_dots = shared.take<float>(Tiles::own_rows);
  Tiles::copy_own(a, a.q, head, queries, block_row);
  Tiles::copy_own(a, a.grad_out, head, out_grads, block_row);
  Tiles::copy_streamed(a, a.k, head, keys, 0);
  Tiles::copy_streamed(a, a.v, head, values, 0);
  commit_copies();
  static_assert(attention_threads == 2 * Tiles::own_rows);
  const int own_row = int(threadIdx.x) / 2;
  const RowStatistics own = row_statistics<T>(a, head, block_row + own_row, int(threadIdx.x));
  if (threadIdx.x % 2 == 0) {
    own_lse[own_row] = statistics.lse(head)[block_row + own_row] = own.lse;
    own_dots[own_row] = statistics.dots(head)[block_row + own_row] = own.dot;
  }

  const Tile query_tile{queries + warp_row * Tiles::head_dim}, out_grad_tile{out_grads + warp_row * Tiles::head_dim};
  float grad_q[1][Tiles::head_dim / 8][4] = {};
  const int tiles = (tokens + Tiles::streamed_rows - 1) / Tiles::streamed_rows;
  for (int tile = 0; tile < tiles; ++tile) {
    wait_for_copies<0>();
    sync_threads();  // the keys are complete, and no warp still reads the previous ones, which the next ones overwrite
    if (tile + 1 < tiles) {
      Tiles::copy_streamed(a, a.k, head, keys, tile + 1);
      Tiles::copy_streamed(a, a.v, head, values, tile + 1);
    }
    commit_copies();
    if (first_query >= tokens) continue;

    constexpr int tile_registers = MatrixStep<T>::tile_registers;
    uint32_t weights[1][key_tiles][tile_registers], grads[1][key_tiles][tile_registers];  // the weights are not used
    {
      float products[1][key_tiles][4] = {}, slopes[1][key_tiles][4] = {};
      multiply_add_transposed(products, query_tile, Tiles::streamed(keys, tile), lane);
      multiply_add_transposed(slopes, out_grad_tile, Tiles::streamed(values, tile), lane);
      const int row = warp_row + lane / 4, first_key = tile * Tiles::streamed_rows;
      const float lse[2] = {own_lse[row], own_lse[row + 8]}, dots[2] = {own_dots[row], own_dots[row + 8]};
      const GradientSquares<T, true> squares(a, head);
      differentiate<T>(weights[0], grads[0], [&](int tile, int i) {
        const int query = block_row + row + i / 2 * 8, key = first_key + lane % 4 * 2 + tile * 8 + i % 2;
        return squares.differentiate(query, key, products[0][tile][i], slopes[0][tile][i], lse[i / 2], dots[i / 2]);
      });
    }
    multiply_add(grad_q, grads, Tiles::streamed(keys, tile), lane);
  }

  if (first_query >= tokens) return;
  sync_warp();  // every lane has read the queries, whose memory stages their gradient
  const float scale = float(a.scale);
  store_rows(a, a.grad_q, head, first_query, grad_q[0], {scale, scale}, query_tile, lane);
}

template <typename T, typename Tiles>
__global__ void __launch_bounds__(attention_threads, Tiles::blocks_at_once)
    attention_backward_keys_kernel(const AttentionBackward a, const AttentionRowStatistics statistics) {
  using Tile = SharedTile<T, Tiles::head_dim>;
  constexpr int query_tiles = Tiles::streamed_tiles;
  const unsigned blocks_per_head = unsigned(a.tokens + Tiles::own_rows - 1) / Tiles::own_rows;
  const unsigned head = blockIdx.x / blocks_per_head;
  const int block_row = int(blockIdx.x - head * blocks_per_head) * Tiles::own_rows;
  const int tokens = int(a.tokens), warp_row = warp_in_block() * attention_tile_rows;
  const int first_key = block_row + warp_row;

  SharedMemory shared;
  T* keys = shared.take<T>(Tiles::own_size);
  T* values = shared.take<T>(Tiles::own_size);
  T* queries = shared.take<T>(2 * Tiles::streamed_size);
  T* out_grads = shared.take<T>(2 * Tiles::streamed_size);
  float* lse = shared.take<float>(2 * Tiles::streamed_rows);
  float* dots = shared.take<float>(2 * Tiles::streamed_rows);
  const auto copy_queries = [&](int tile) {
    Tiles::copy_streamed(a, a.q, head, queries, tile);
    Tiles::copy_streamed(a, a.grad_out, head, out_grads, tile);
    const int place = 4 * opaque(int(threadIdx.x)), first_query = tile * Tiles::streamed_rows;
    if (place >= Tiles::streamed_rows) return;
    const int target = tile % 2 * Tiles::streamed_rows + place;
    copy_async(lse + target, statistics.lse(head) + first_query + place, true);
    copy_async(dots + target, statistics.dots(head) + first_query + place, true);
  };
  Tiles::copy_own(a, a.k, head, keys, block_row);
  Tiles::copy_own(a, a.v, head, values, block_row);
  copy_queries(0);
  commit_copies();

  const Tile key_tile{keys + warp_row * Tiles::head_dim}, value_tile{values + warp_row * Tiles::head_dim};
  float grad_k[1][Tiles::head_dim / 8][4] = {}, grad_v[1][Tiles::head_dim / 8][4] = {};
  const int tiles = (tokens + Tiles::streamed_rows - 1) / Tiles::streamed_rows;
  for (int tile = 0; tile < tiles; ++tile) {
    wait_for_copies<0>();
    sync_threads();  // the queries are complete, and no warp still reads the previous ones, which the next ones
                     // overwrite
    if (tile + 1 < tiles) copy_queries(tile + 1);
    commit_copies();
    if (first_key >= tokens) continue;

    const int lane = opaque(lane_in_warp());
    const Tile query_tile = Tiles::streamed(queries, tile), out_grad_tile = Tiles::streamed(out_grads, tile);
    constexpr int tile_registers = MatrixStep<T>::tile_registers;
    uint32_t weights[1][query_tiles][tile_registers], grads[1][query_tiles][tile_registers];
    {
      float products[1][query_tiles][4] = {}, slopes[1][query_tiles][4] = {};
      multiply_add_transposed(products, key_tile, query_tile, lane);
      multiply_add_transposed(slopes, value_tile, out_grad_tile, lane);
      const int column = lane % 4 * 2, place = tile % 2 * Tiles::streamed_rows + column;
      const int query = tile * Tiles::streamed_rows + column, key = first_key + lane / 4;
      const GradientSquares<T, false> squares(a, head);  // grad_bias is written by the other kernel
      differentiate<T>(weights[0], grads[0], [&](int tile, int i) {
        const int row = tile * 8 + i % 2;
        return squares.differentiate(
            query + row,
            key + i / 2 * 8,
            products[0][tile][i],
            slopes[0][tile][i],
            lse[place + row],
            dots[place + row]);
      });
    }
    multiply_add(grad_v, weights, out_grad_tile, lane);
    multiply_add(grad_k, grads, query_tile, lane);
  }

  if (first_key >= tokens) return;
  sync_warp();  // every lane has read the keys and values, whose memory stages their gradients
  const int lane = lane_in_warp();
  const float scale = float(a.scale);
  store_rows(a, a.grad_k, head, first_key, grad_k[0], {scale, scale}, key_tile, lane);
  store_rows(a, a.grad_v, head, first_key, grad_v[0], {1.0f, 1.0f}, value_tile, lane);
}

}  // namespace vitfast
