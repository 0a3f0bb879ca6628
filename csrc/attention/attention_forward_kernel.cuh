// Attention, forward, for up to 256 tokens: keys and values of a head lie whole in shared memory, and a warp holds
// whole rows of logits in registers, so that one softmax over the row suffices.
//
// A block works on one head of one image, or on several where a head has fewer tiles than the block has warps. A warp
// takes a tile of 16 queries at a time:
//
//     logits [16, N] = q [16, D] kᵀ      products of 16 x 8 x 16
//     weights = exp2(logits - maximum)   in registers: a fragment of logits becomes a fragment of weights
//     out [16, D] = weights v / sum      N padded to a multiple of 16, with weights that are zero
//
// What becomes of the logits is up to the `softmax_rows` of the arguments' type: AttentionForward's, or that of
// ConViT's attention (gated_positional_softmax.cuh).
//
// The number of tiles of 8 keys is known when the kernel is compiled, so that all of its loops over registers are
// straight code; instances fit the lengths of common models (attention_forward_launch.cuh). Rows of k and v behind the
// last token, and columns behind the head dimension, are zero in shared memory.

#pragma once

#include "csrc/attention/attention_gemm.cuh"
#include "csrc/attention/attention_softmax.cuh"
#include "csrc/cuda/barrier.cuh"
#include "csrc/cuda/shared_memory.cuh"

namespace vitfast {

// Rows of k, and of v, in shared memory.
__host__ __device__ constexpr int attention_padded_keys(int key_tiles) {
  return (key_tiles + 1) / 2 * 16;
}

template <typename T, int head_dim, int key_tiles>
__host__ __device__ constexpr int attention_shared_bytes(int heads_per_block) {
  return 2 * shared_bytes<T>(heads_per_block * attention_padded_keys(key_tiles) * head_dim) +
         2 * attention_warps * shared_bytes<T>(attention_tile_rows * head_dim);
}

// How many blocks share a multiprocessor, as far as shared memory allows: what is left for a thread are 128, 168 or 255
// registers.
__host__ __device__ constexpr int attention_blocks_at_once(int head_dim, int key_tiles) {
  if (head_dim > 64 || key_tiles > 25) return 2;
  return key_tiles > 7 ? 3 : 4;
}

// Takes up to 8 `key_tiles` tokens, more than 8 `full_tiles`, and head dimensions up to `head_dim`.
template <typename T, int head_dim, int full_tiles, int key_tiles, typename Arguments>
__global__ void __launch_bounds__(attention_threads, attention_blocks_at_once(head_dim, key_tiles))
    attention_forward_kernel(const Arguments a, const int heads_asked) {
  using Tile = SharedTile<T, head_dim>;
  // several only where a head alone may have too few tiles for the warps; known to the compiler elsewhere
  constexpr bool fills_block = full_tiles * 8 >= (attention_warps - 1) * attention_tile_rows;
  const int heads_per_block = fills_block ? 1 : heads_asked;
  const int tokens = int(a.tokens), columns = int(a.head_dim);
  const int tiles = attention_tiles(tokens);
  constexpr int padded_keys = attention_padded_keys(key_tiles);
  const unsigned first_head = blockIdx.x * unsigned(heads_per_block);
  const unsigned heads_left = unsigned(a.batch * a.heads) - first_head;
  const int heads = heads_left < unsigned(heads_per_block) ? int(heads_left) : heads_per_block;
  const int tasks = heads * tiles;  // a task is a tile of queries of a head
  const int warp = warp_in_block();

  SharedMemory shared;
  T* keys = shared.take<T>(heads_per_block * padded_keys * head_dim);
  T* values = shared.take<T>(heads_per_block * padded_keys * head_dim);
  Tile queries{}, results{};  // this warp's own
  for (int w = 0; w < attention_warps; ++w) {
    T* first = shared.take<T>(attention_tile_rows * head_dim);
    T* second = shared.take<T>(attention_tile_rows * head_dim);
    if (w != warp) continue;
    queries.data = first;
    results.data = second;
  }

  const auto copy_queries = [&](int task, int lane) {
    const int head = fills_block ? 0 : task / tiles, first_row = (task - head * tiles) * attention_tile_rows;
    const T* rows = head_rows<const T>(a, a.q, first_head + head) + first_row * a.q.token_stride;
    copy_rows(queries, attention_tile_rows, rows, a.q.token_stride, tokens - first_row, columns, lane, warp_size);
  };
  const auto copy_heads = [&](const HeadsView& view, T* target) {
    for (int h = 0; h < heads; ++h) {
      const T* rows = head_rows<const T>(a, view, first_head + h);
      const Tile tile{target + h * padded_keys * head_dim};
      copy_rows(tile, padded_keys, rows, view.token_stride, tokens, columns, int(threadIdx.x), attention_threads);
    }
  };

  if (warp < tasks) copy_queries(warp, lane_in_warp());
  copy_heads(a.k, keys);
  commit_copies();
  copy_heads(a.v, values);
  commit_copies();

  // All warps go through the same number of rounds, for the barriers in the first.
  for (int first_task = 0; first_task < tasks; first_task += attention_warps) {
    const int task = first_task + warp, lane = opaque(lane_in_warp());
    const bool has_task = task < tasks;
    if (first_task == 0) {
      wait_for_copies<1>();  // queries and keys; the values may be under way
      sync_threads();
    } else {
      wait_for_copies<0>();
      sync_warp();
    }

    const int head = fills_block ? 0 : task / tiles, first_row = (task - head * tiles) * attention_tile_rows;
    const LaneRows at{first_head + head, {first_row + lane / 4, first_row + lane / 4 + 8}, lane % 4 * 2};
    uint32_t weights[1][key_tiles][2];
    float inverse_sums[2];
    if (has_task) {
      float logits[1][key_tiles][4];
      multiply_transposed(logits, queries, Tile{keys + head * padded_keys * head_dim}, lane);
      softmax_rows<T, full_tiles>(a, logits[0], weights[0], inverse_sums, at);
    }
    sync_warp();  // every lane has read its queries: the next ones may land there
    if (task + attention_warps < tasks) copy_queries(task + attention_warps, lane);
    commit_copies();
    if (first_task == 0) {
      wait_for_copies<1>();  // the values; the next queries may be under way
      sync_threads();
    }
    if (has_task) {
      float out[1][head_dim / 8][4] = {};
      multiply_add(out, weights, Tile{values + head * padded_keys * head_dim}, lane);
      T* rows = head_rows<T>(a, a.out, at.head) + first_row * a.out.token_stride;
      // the sync_warps above part this from the tile's last use
      store_rows(rows, a.out.token_stride, tokens - first_row, columns, out[0], inverse_sums, results, lane);
    }
  }
}

}  // namespace vitfast
