// Attention backward for up to 200 tokens; equations in attention_gradient.cuh.
//
// A block processes one head of one image, with all its rows in shared memory. Each warp owns 16 keys and keeps their
// grad_k and grad_v in registers. Iterations process a few tiles of 8 queries:
//
//     Sᵀ  [16 keys, queries] = k qᵀ           recomputed; with the lse, Pᵀ needs no reduction over the row
//     dPᵀ [16 keys, queries] = v grad_outᵀ
//     grad_v += Pᵀ grad_out,  grad_k += dSᵀ q    fragments of Pᵀ and dSᵀ become A fragments in registers
//     dSᵀ -> shared memory, from which the warps compute tiles of grad_q = dS k
//
// dSᵀ is double-buffered, so that an iteration has one barrier. Every sum has a fixed order.

#pragma once

#include "csrc/attention/attention_gemm.cuh"
#include "csrc/attention/attention_gradient.cuh"
#include "csrc/cuda/shared_memory.cuh"
#include "csrc/cuda/threads.cuh"

namespace vitfast {

// Sizes of an instance: up to 16 `warps` tokens, 8 `query_tiles` queries per iteration.
template <typename T, int warps_, int query_tiles_>
struct AttentionBackwardShape {
  static constexpr int head_dim = attention_cuda_max_head_dim;  // columns in shared memory
  static constexpr int warps = warps_;
  static constexpr int threads = warps * warp_size;
  static constexpr int query_tiles = query_tiles_;
  static constexpr int round_rows = 8 * query_tiles;
  static constexpr int key_rows = attention_tile_rows * warps;
  static constexpr int query_rows = int(ceil_div(key_rows, round_rows)) * round_rows;
  static constexpr int blocks_at_once = warps <= 4 ? 3 : warps <= 7 ? 2 : 1;
  static constexpr int bytes = 2 * shared_bytes<T>(key_rows * head_dim) + 2 * shared_bytes<T>(query_rows * head_dim) +
                               shared_bytes<T>(2 * key_rows * round_rows) + 2 * shared_bytes<float>(query_rows);
};

// Computes rows [first_query, first_query + round_rows) of grad_q = dS k, with dSᵀ in `grads`; a tile of 16 x 16 per
// warp. There are fewer tiles than warps, so each round starts at the warp after the last one's.
template <typename T, typename Shape>
__device__ __forceinline__ void write_grad_q(
    const AttentionBackward& a,
    T* grad_q,
    int first_query,
    const SharedTile<T, Shape::round_rows>& grads,
    const SharedTile<T, Shape::head_dim>& keys,
    int lane) {
  constexpr int column_tiles = Shape::head_dim / 16, units = Shape::round_rows / 16 * column_tiles;
  const float scale = float(a.scale);
  const int warps_before = first_query / Shape::round_rows * units;
  const int place = warp_in_block() + Shape::warps - warps_before % Shape::warps;
  for (int unit = place % Shape::warps; unit < units; unit += Shape::warps) {
    const int row_tile = unit / column_tiles, column_tile = unit % column_tiles;
    float d[2][4] = {};
#pragma unroll 4
    for (int key = 0; key < Shape::key_rows; key += 16) {
      uint32_t left[4], right[4];
      ldmatrix_x4_transposed(left, grads.chunk(key + lane / 16 * 8 + lane % 8, 2 * row_tile + lane / 8 % 2));
      ldmatrix_x4_transposed(right, keys.chunk(key + lane % 16, 2 * column_tile + lane / 16));
      mma_m16n8k16<T>(d[0], left, right[0], right[1]);
      mma_m16n8k16<T>(d[1], left, right[2], right[3]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // two pairs of columns in each of two rows
      const int row = first_query + row_tile * 16 + lane / 4 + i % 2 * 8;
      const int column = column_tile * 16 + i / 2 * 8 + lane % 4 * 2;
      if (row >= a.tokens || column >= a.head_dim) continue;
      const float (&pair)[4] = d[i / 2];
      *reinterpret_cast<uint32_t*>(grad_q + row * a.grad_q.token_stride + column) =
          round_to_pair<T>(pair[i % 2 * 2] * scale, pair[i % 2 * 2 + 1] * scale);
    }
  }
}

template <typename T, typename Shape>
__global__ void __launch_bounds__(Shape::threads, Shape::blocks_at_once)
    attention_backward_kernel(const AttentionBackward a) {
  constexpr int head_dim = Shape::head_dim, query_tiles = Shape::query_tiles;
  using Tile = SharedTile<T, head_dim>;
  using GradTile = SharedTile<T, Shape::round_rows>;
  const unsigned head = blockIdx.x;
  const int tokens = int(a.tokens), thread = int(threadIdx.x);
  const int first_key = warp_in_block() * attention_tile_rows;

  SharedMemory shared;
  T* keys = shared.take<T>(Shape::key_rows * head_dim);
  T* values = shared.take<T>(Shape::key_rows * head_dim);
  T* queries = shared.take<T>(Shape::query_rows * head_dim);
  T* out_grads = shared.take<T>(Shape::query_rows * head_dim);
  constexpr int grads_size = Shape::key_rows * Shape::round_rows;
  T* grads = shared.take<T>(2 * grads_size);
  float* lse = shared.take<float>(Shape::query_rows);
  float* dots = shared.take<float>(Shape::query_rows);

  const auto copy_head = [&](const HeadsView& view, T* target, int rows) {
    copy_rows(Tile{target}, rows, a, view, head, 0, thread, Shape::threads);
  };
  copy_head(a.k, keys, Shape::key_rows);
  copy_head(a.q, queries, Shape::query_rows);
  copy_head(a.v, values, Shape::key_rows);
  copy_head(a.grad_out, out_grads, Shape::query_rows);
  commit_copies();
  static_assert(Shape::threads == 2 * Shape::key_rows);
  const RowStatistics own = row_statistics<T>(a, head, thread / 2, thread);
  if (thread % 2 == 0) {
    lse[thread / 2] = own.lse;
    dots[thread / 2] = own.dot;
  }
  for (int i = Shape::key_rows + thread; i < Shape::query_rows; i += Shape::threads) {
    lse[i] = infinity;
    dots[i] = 0.0f;
  }
  wait_for_copies<0>();
  sync_threads();

  const Tile key_tile{keys + first_key * head_dim}, value_tile{values + first_key * head_dim};
  float grad_k[head_dim / 8][4] = {}, grad_v[head_dim / 8][4] = {};
  T* grad_q = head_rows<T>(a, a.grad_q, head);
  for (int first_query = 0, turn = 0; first_query < tokens; first_query += Shape::round_rows, turn ^= 1) {
    const int lane = opaque(lane_in_warp());
    const Tile query_tile{queries + first_query * head_dim}, out_grad_tile{out_grads + first_query * head_dim};
    uint32_t weights[query_tiles][2], grad_pairs[query_tiles][2];
    {
      float products[query_tiles][4] = {}, slopes[query_tiles][4] = {};
      multiply_add_transposed(products, key_tile, query_tile, lane);
      multiply_add_transposed(slopes, value_tile, out_grad_tile, lane);
      const int query = first_query + lane % 4 * 2, key = first_key + lane / 4;
      const GradientSquares<T> squares(a, head);
      differentiate<T>(weights, grad_pairs, [&](int tile, int i) {
        const int row = query + tile * 8 + i % 2;
        return squares.differentiate(row, key + i / 2 * 8, products[tile][i], slopes[tile][i], lse[row], dots[row]);
      });
    }
    multiply_add(grad_v, weights, out_grad_tile, lane);
    multiply_add(grad_k, grad_pairs, query_tile, lane);
    const GradTile grad_tile{grads + turn * grads_size};
#pragma unroll
    for (int tile = 0; tile < query_tiles; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        T* chunk = grad_tile.chunk(first_key + lane / 4 + 8 * half, tile);
        reinterpret_cast<uint32_t*>(chunk)[lane % 4] = grad_pairs[tile][half];
      }
    }
    sync_threads();  // also parts the reads of two iterations ago from the next writes
    write_grad_q<T, Shape>(a, grad_q, first_query, grad_tile, Tile{keys}, lane);
  }

  sync_threads();  // every warp has read the keys, whose memory stages the gradients
  const int lane = lane_in_warp();
  const float scale = float(a.scale);
  store_rows(a, a.grad_k, head, first_key, grad_k, {scale, scale}, key_tile, lane);
  store_rows(a, a.grad_v, head, first_key, grad_v, {1.0f, 1.0f}, value_tile, lane);
}

}  // namespace vitfast
