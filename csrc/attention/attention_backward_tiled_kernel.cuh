// Attention backward for any number of tokens; equations in attention_gradient.cuh. Two instances of one kernel, in
// this order:
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

// Sizes of an instance, for head dimensions up to `head_dim`: tiles of 8 `streamed_tiles` rows,
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
};

// RowStatistics of all rows, passed from the first kernel to the second.
struct AttentionRowStatistics {
  float* data;      // [B, H, 2, padded_rows]
  int padded_rows;  // a multiple of own_rows

  __device__ __forceinline__ float* lse(unsigned head) const { return data + int64_t(head) * 2 * padded_rows; }
  __device__ __forceinline__ float* dots(unsigned head) const { return lse(head) + padded_rows; }
};

// `owns_keys`: a warp owns keys (and values), and queries (and grad_out) are streamed; otherwise the reverse.
template <typename T, typename Tiles, bool owns_keys>
__global__ void __launch_bounds__(attention_threads, Tiles::blocks_at_once)
    attention_backward_tiled_kernel(const AttentionBackward a, const AttentionRowStatistics statistics) {
  constexpr int head_dim = Tiles::head_dim, streamed_tiles = Tiles::streamed_tiles;
  constexpr int own_rows = Tiles::own_rows, streamed_rows = Tiles::streamed_rows;
  using Tile = SharedTile<T, head_dim>;
  const unsigned blocks_per_head = unsigned(a.tokens + own_rows - 1) / own_rows;
  const unsigned head = blockIdx.x / blocks_per_head;
  const int block_row = int(blockIdx.x - head * blocks_per_head) * own_rows;
  const int tokens = int(a.tokens), warp_row = warp_in_block() * attention_tile_rows;
  const int first_row = block_row + warp_row;

  SharedMemory shared;
  T* own = shared.take<T>(Tiles::own_size);         // keys or queries
  T* own_second = shared.take<T>(Tiles::own_size);  // values or grad_out
  T* streamed = shared.take<T>(2 * Tiles::streamed_size);
  T* streamed_second = shared.take<T>(2 * Tiles::streamed_size);
  float* lse = shared.take<float>(owns_keys ? 2 * streamed_rows : own_rows);  // of the queries
  float* dots = shared.take<float>(owns_keys ? 2 * streamed_rows : own_rows);
  const auto copy_own = [&](const HeadsView& view, T* target) {
    copy_rows(Tile{target}, own_rows, a, view, head, block_row, opaque(int(threadIdx.x)), attention_threads);
  };
  const auto tile_in = [](T* buffers, int tile) { return Tile{buffers + tile % 2 * Tiles::streamed_size}; };
  const auto copy_tile = [&](const HeadsView& view, T* buffers, int tile) {
    const int first = tile * streamed_rows, thread = opaque(int(threadIdx.x));
    copy_rows(tile_in(buffers, tile), streamed_rows, a, view, head, first, thread, attention_threads);
  };
  const auto copy_streamed = [&](int tile) {
    copy_tile(owns_keys ? a.q : a.k, streamed, tile);
    copy_tile(owns_keys ? a.grad_out : a.v, streamed_second, tile);
    const int place = 4 * opaque(int(threadIdx.x)), first_query = tile * streamed_rows;
    if (!owns_keys || place >= streamed_rows) return;
    const int target = tile % 2 * streamed_rows + place;
    copy_async(lse + target, statistics.lse(head) + first_query + place, true);
    copy_async(dots + target, statistics.dots(head) + first_query + place, true);
  };
  copy_own(owns_keys ? a.k : a.q, own);
  copy_own(owns_keys ? a.v : a.grad_out, own_second);
  copy_streamed(0);
  commit_copies();
  if constexpr (!owns_keys) {
    static_assert(attention_threads == 2 * own_rows);
    const int row = int(threadIdx.x) / 2;
    const RowStatistics found = row_statistics<T>(a, head, block_row + row, int(threadIdx.x));
    if (threadIdx.x % 2 == 0) {
      lse[row] = statistics.lse(head)[block_row + row] = found.lse;
      dots[row] = statistics.dots(head)[block_row + row] = found.dot;
    }
  }

  const Tile own_tile{own + warp_row * head_dim}, own_second_tile{own_second + warp_row * head_dim};
  float grad[1][head_dim / 8][4] = {}, grad_v[1][head_dim / 8][4] = {};  // of the keys or queries, and of the values
  const int tiles = (tokens + streamed_rows - 1) / streamed_rows;
  for (int tile = 0; tile < tiles; ++tile) {
    wait_for_copies<0>();
    sync_threads();  // the tile is complete, and no warp still reads the previous one, which the next one overwrites
    if (tile + 1 < tiles) copy_streamed(tile + 1);
    commit_copies();
    if (first_row >= tokens) continue;

    const int lane = opaque(lane_in_warp());
    const Tile streamed_tile = tile_in(streamed, tile), streamed_second_tile = tile_in(streamed_second, tile);
    constexpr int tile_registers = MatrixStep<T>::tile_registers;
    uint32_t weights[1][streamed_tiles][tile_registers], grads[1][streamed_tiles][tile_registers];
    {
      float products[1][streamed_tiles][4] = {}, slopes[1][streamed_tiles][4] = {};
      multiply_add_transposed(products, own_tile, streamed_tile, lane);
      multiply_add_transposed(slopes, own_second_tile, streamed_second_tile, lane);
      const int row = first_row + lane / 4, column = tile * streamed_rows + lane % 4 * 2;
      const int place = owns_keys ? tile % 2 * streamed_rows + lane % 4 * 2 : warp_row + lane / 4;
      // of the lane's two queries, unless it has two keys
      const float own_lse[2] = {lse[place], lse[place + 8]}, own_dots[2] = {dots[place], dots[place + 8]};
      const GradientSquares<T, !owns_keys> squares(a, head);
      differentiate<T>(weights[0], grads[0], [&](int t, int i) {
        const int r = i / 2, c = t * 8 + i % 2;
        const float product = products[0][t][i], slope = slopes[0][t][i];
        if constexpr (owns_keys) {
          return squares.differentiate(column + c, row + 8 * r, product, slope, lse[place + c], dots[place + c]);
        } else {
          return squares.differentiate(row + 8 * r, column + c, product, slope, own_lse[r], own_dots[r]);
        }
      });
    }
    if constexpr (owns_keys) multiply_add(grad_v, weights, streamed_second_tile, lane);
    multiply_add(grad, grads, streamed_tile, lane);
  }

  if (first_row >= tokens) return;
  sync_warp();  // every lane has read its own rows, whose memory stages their gradients
  const int lane = lane_in_warp();
  const float scale = float(a.scale);
  store_rows(a, owns_keys ? a.grad_k : a.grad_q, head, first_row, grad[0], {scale, scale}, own_tile, lane);
  if constexpr (owns_keys) store_rows(a, a.grad_v, head, first_row, grad_v[0], {1.0f, 1.0f}, own_second_tile, lane);
}

}  // namespace vitfast
