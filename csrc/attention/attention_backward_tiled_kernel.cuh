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
};

// lse, in units of ln 2, and D of every row, passed from the first kernel to the second. Past the last token the lse is
// infinite, which makes P zero, and D is zero.
struct AttentionRowStatistics {
  float* data;      // [B, H, 2, padded_rows]
  int padded_rows;  // a multiple of own_rows

  __device__ __forceinline__ float* lse(unsigned head) const { return data + int64_t(head) * 2 * padded_rows; }
  __device__ __forceinline__ float* dots(unsigned head) const { return lse(head) + padded_rows; }
};

// Computes lse and D of the block's rows, for this kernel (shared memory) and the next; a pair of threads per row.
template <typename T, typename Tiles>
__device__ __forceinline__ void prepare_own_rows(
    const AttentionBackward& a,
    const AttentionRowStatistics& statistics,
    unsigned head,
    int first_row,
    float* lse,
    float* dots) {
  static_assert(attention_threads == 2 * Tiles::own_rows);
  const int tokens = int(a.tokens), thread = int(threadIdx.x), row = first_row + thread / 2;
  const T* out = head_rows<const T>(a, a.out, head) + row * a.out.token_stride;
  const T* grad_out = head_rows<const T>(a, a.grad_out, head) + row * a.grad_out.token_stride;
  const float dot = row_dot(out, grad_out, int(a.head_dim), row < tokens, thread);
  if (thread % 2 != 0) return;
  const float* lse_rows = static_cast<const float*>(a.lse) + int64_t(head) * tokens;
  lse[thread / 2] = statistics.lse(head)[row] = row < tokens ? lse_rows[row] * log2_of_e : infinity;
  dots[thread / 2] = statistics.dots(head)[row] = dot;
}

// In: S without scale and bias, dP, and lse and D of the lane's two queries. Out: dS, rounded to T, as A fragments.
template <typename T, int key_tiles>
__device__ __forceinline__ void differentiate_queries(
    const GradientSquares<T, true>& squares,
    const float (&products)[key_tiles][4],
    const float (&slopes)[key_tiles][4],
    uint32_t (&grads)[key_tiles][MatrixStep<T>::tile_registers],
    const float (&lse)[2],
    const float (&dots)[2],
    int query,
    int key) {
#pragma unroll
  for (int tile = 0; tile < key_tiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float grad[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float product = products[tile][2 * half + i], slope = slopes[tile][2 * half + i];
        const int row = query + 8 * half, column = key + tile * 8 + i;
        grad[i] = squares.differentiate(row, column, product, slope, lse[half], dots[half]).grad;
      }
      MatrixStep<T>::set_columns(grads[tile], half, grad[0], grad[1]);
    }
  }
}

// Copies and stores of rows of one head: those that the block owns, and the streamed ones.
template <typename T, typename Tiles>
struct AttentionBackwardRows {
  using Tile = SharedTile<T, Tiles::head_dim>;
  const AttentionBackward& a;
  unsigned head;

  __device__ __forceinline__ void copy_own(const HeadsView& view, T* target, int first_row) const {
    copy(view, Tile{target}, Tiles::own_rows, first_row);
  }

  // `target` holds two tiles.
  __device__ __forceinline__ void copy_streamed(const HeadsView& view, T* target, int tile) const {
    copy(view, streamed(target, tile), Tiles::streamed_rows, tile * Tiles::streamed_rows);
  }

  __device__ __forceinline__ Tile streamed(T* buffers, int tile) const {
    return Tile{buffers + tile % 2 * Tiles::streamed_size};
  }

  // Writes the 16 rows of a warp, staged through a tile that is no longer in use.
  __device__ __forceinline__ void store(
      const HeadsView& view,
      int first_row,
      const float (&rows)[Tiles::head_dim / 8][4],
      float factor,
      const Tile& tile) const {
    T* target = head_rows<T>(a, view, head) + first_row * view.token_stride;
    const int left = int(a.tokens) - first_row;
    store_rows(target, view.token_stride, left, int(a.head_dim), rows, {factor, factor}, tile, lane_in_warp());
  }

 private:
  __device__ __forceinline__ void copy(const HeadsView& view, const Tile& target, int rows, int first_row) const {
    const T* source = head_rows<const T>(a, view, head) + first_row * view.token_stride;
    const int left = int(a.tokens) - first_row, thread = opaque(int(threadIdx.x));
    copy_rows(target, rows, source, view.token_stride, left, int(a.head_dim), thread, attention_threads);
  }
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
  const AttentionBackwardRows<T, Tiles> rows{a, head};
  rows.copy_own(a.q, queries, block_row);
  rows.copy_own(a.grad_out, out_grads, block_row);
  rows.copy_streamed(a.k, keys, 0);
  rows.copy_streamed(a.v, values, 0);
  commit_copies();
  prepare_own_rows<T, Tiles>(a, statistics, head, block_row, own_lse, own_dots);

  const Tile query_tile{queries + warp_row * Tiles::head_dim}, out_grad_tile{out_grads + warp_row * Tiles::head_dim};
  float grad_q[1][Tiles::head_dim / 8][4] = {};
  const int tiles = (tokens + Tiles::streamed_rows - 1) / Tiles::streamed_rows;
  for (int tile = 0; tile < tiles; ++tile) {
    wait_for_copies<0>();
    sync_threads();  // the keys are complete, and no warp still reads the previous ones, which the next ones overwrite
    if (tile + 1 < tiles) {
      rows.copy_streamed(a.k, keys, tile + 1);
      rows.copy_streamed(a.v, values, tile + 1);
    }
    commit_copies();
    if (first_query >= tokens) continue;

    uint32_t grads[1][key_tiles][MatrixStep<T>::tile_registers];
    {
      float products[1][key_tiles][4], slopes[1][key_tiles][4];
      multiply_transposed(products, query_tile, rows.streamed(keys, tile), lane);
      multiply_transposed(slopes, out_grad_tile, rows.streamed(values, tile), lane);
      const int row = warp_row + lane / 4, first_key = tile * Tiles::streamed_rows;
      const float lse[2] = {own_lse[row], own_lse[row + 8]}, dots[2] = {own_dots[row], own_dots[row + 8]};
      differentiate_queries(
          GradientSquares<T, true>(a, head),
          products[0],
          slopes[0],
          grads[0],
          lse,
          dots,
          block_row + row,
          first_key + lane % 4 * 2);
    }
    multiply_add(grad_q, grads, rows.streamed(keys, tile), lane);
  }

  if (first_query >= tokens) return;
  sync_warp();  // every lane has read the queries, whose memory stages their gradient
  rows.store(a.grad_q, first_query, grad_q[0], float(a.scale), query_tile);
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
  const AttentionBackwardRows<T, Tiles> rows{a, head};
  const auto copy_queries = [&](int tile) {
    rows.copy_streamed(a.q, queries, tile);
    rows.copy_streamed(a.grad_out, out_grads, tile);
    const int place = 4 * opaque(int(threadIdx.x)), first_query = tile * Tiles::streamed_rows;
    if (place >= Tiles::streamed_rows) return;
    const int target = tile % 2 * Tiles::streamed_rows + place;
    copy_async(lse + target, statistics.lse(head) + first_query + place, true);
    copy_async(dots + target, statistics.dots(head) + first_query + place, true);
  };
  rows.copy_own(a.k, keys, block_row);
  rows.copy_own(a.v, values, block_row);
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
    const Tile query_tile = rows.streamed(queries, tile), out_grad_tile = rows.streamed(out_grads, tile);
    constexpr int tile_registers = MatrixStep<T>::tile_registers;
    uint32_t weights[1][query_tiles][tile_registers], grads[1][query_tiles][tile_registers];
    {
      float products[1][query_tiles][4], slopes[1][query_tiles][4];
      multiply_transposed(products, key_tile, query_tile, lane);
      multiply_transposed(slopes, value_tile, out_grad_tile, lane);
      const int key = first_key + lane / 4, query = lane % 4 * 2, place = tile % 2 * Tiles::streamed_rows + query;
      const LaneKeys at{{key, key + 8}, tile * Tiles::streamed_rows + query};
      const GradientSquares<T, false> squares(a, head);  // grad_bias is written by the other kernel
      differentiate_keys(squares, products[0], slopes[0], weights[0], grads[0], lse + place, dots + place, at);
    }
    multiply_add(grad_v, weights, out_grad_tile, lane);
    multiply_add(grad_k, grads, query_tile, lane);
  }

  if (first_key >= tokens) return;
  sync_warp();  // every lane has read the keys and values, whose memory stages their gradients
  rows.store(a.grad_k, first_key, grad_k[0], float(a.scale), key_tile);
  rows.store(a.grad_v, first_key, grad_v[0], 1.0f, value_tile);
}

}  // namespace vitfast
