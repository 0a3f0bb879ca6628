// Attention forward for up to 200 tokens: K and V of a head are kept whole in shared memory, and a warp keeps whole
// rows of logits in registers, so that one softmax pass per row suffices.
//
// A block processes one head of one image, or several if a head has fewer tiles than the block has warps. A warp
// processes tiles of 16 queries:
//
//     logits [16, N] = q [16, D] kᵀ      mma of 16 x 8 x 16
//     weights = exp2(logits - maximum)   in registers: fragments of logits become fragments of weights
//     out [16, D] = weights v / sum      N padded to a multiple of 16 with zero weights
//
// softmax_rows is overloaded on the type of the arguments: AttentionForward or GatedPositionalAttention.
//
// The number of tiles of 8 keys is a template parameter, so that all loops over registers are unrolled; the instances
// match sequence lengths of common models (attention_forward_launch.cuh). Rows of K and V past the last token and
// columns past the head dimension are zero in shared memory.

#pragma once

#include "csrc/attention/attention_gemm.cuh"
#include "csrc/attention/attention_softmax.cuh"
#include "csrc/cuda/shared_memory.cuh"
#include "csrc/cuda/threads.cuh"

namespace vitfast {

// Number of rows of K, and of V, in shared memory.
__host__ __device__ constexpr int attention_padded_keys(int key_tiles) {
  return (key_tiles + 1) / 2 * 16;
}

template <typename T, int head_dim, int key_tiles>
__host__ __device__ constexpr int attention_shared_bytes(int heads_per_block) {
  return 2 * shared_bytes<T>(heads_per_block * attention_padded_keys(key_tiles) * head_dim) +
         2 * attention_warps * shared_bytes<T>(attention_tile_rows * head_dim);
}

// Blocks per multiprocessor; leaves 128 or 168 registers per thread.
__host__ __device__ constexpr int attention_blocks_at_once(int key_tiles) {
  return key_tiles > 7 ? 3 : 4;
}

// Supports 8 * full_tiles < tokens <= 8 * key_tiles and head dimensions up to `head_dim`.
template <typename T, int head_dim, int full_tiles, int key_tiles, typename Arguments>
__global__ void __launch_bounds__(attention_threads, attention_blocks_at_once(key_tiles))
    attention_forward_kernel(const Arguments a, const int heads_asked) {
  using Tile = SharedTile<T, head_dim>;
  // a compile-time constant where one head always has enough tiles for the warps
  constexpr bool fills_block = full_tiles * 8 >= (attention_warps - 1) * attention_tile_rows;
  const int heads_per_block = fills_block ? 1 : heads_asked;
  const int tiles = attention_tiles(a.tokens);
  constexpr int padded_keys = attention_padded_keys(key_tiles);
  const unsigned first_head = blockIdx.x * unsigned(heads_per_block);
  const unsigned heads_left = unsigned(a.batch * a.heads) - first_head;
  const int heads = heads_left < unsigned(heads_per_block) ? int(heads_left) : heads_per_block;
  const int tasks = heads * tiles;  // a task is a tile of queries of a head
  const int warp = warp_in_block();

  SharedMemory shared;
  T* keys = shared.take<T>(heads_per_block * padded_keys * head_dim);
  T* values = shared.take<T>(heads_per_block * padded_keys * head_dim);
  Tile queries{}, results{};  // of this warp
  for (int w = 0; w < attention_warps; ++w) {
    T* first = shared.take<T>(attention_tile_rows * head_dim);
    T* second = shared.take<T>(attention_tile_rows * head_dim);
    if (w != warp) continue;
    queries.data = first;
    results.data = second;
  }

  const auto copy_queries = [&](int task, int lane) {
    const int head = fills_block ? 0 : task / tiles, first_row = (task - head * tiles) * attention_tile_rows;
    copy_rows(queries, attention_tile_rows, a, a.q, first_head + head, first_row, lane, warp_size);
  };
  const auto copy_heads = [&](const HeadsView& view, T* target) {
    for (int h = 0; h < heads; ++h) {
      const Tile tile{target + h * padded_keys * head_dim};
      copy_rows(tile, padded_keys, a, view, first_head + h, 0, int(threadIdx.x), attention_threads);
    }
  };

  if (warp < tasks) copy_queries(warp, lane_in_warp());
  copy_heads(a.k, keys);
  commit_copies();
  copy_heads(a.v, values);
  commit_copies();

  // All warps execute the same number of iterations, because the first one has block barriers.
  for (int first_task = 0; first_task < tasks; first_task += attention_warps) {
    const int task = first_task + warp, lane = opaque(lane_in_warp());
    const bool has_task = task < tasks;
    if (first_task == 0) {
      wait_for_copies<1>();  // queries and keys; the values may be in flight
      sync_threads();
    } else {
      wait_for_copies<0>();
      sync_warp();
    }

    const int head = fills_block ? 0 : task / tiles, first_row = (task - head * tiles) * attention_tile_rows;
    const LaneRows at{first_head + head, {first_row + lane / 4, first_row + lane / 4 + 8}, lane % 4 * 2};
    uint32_t weights[key_tiles][2];
    float inverse_sums[2];
    if (has_task) {
      float logits[key_tiles][4] = {};
      multiply_add_transposed(logits, queries, Tile{keys + head * padded_keys * head_dim}, lane);
      softmax_rows<T, full_tiles>(a, logits, weights, inverse_sums, at);
    }
    sync_warp();  // every lane has read its queries, which the next ones overwrite
    if (task + attention_warps < tasks) copy_queries(task + attention_warps, lane);
    commit_copies();
    if (first_task == 0) {
      wait_for_copies<1>();  // the values; the next queries may be in flight
      sync_threads();
    }
    if (has_task) {
      float out[head_dim / 8][4] = {};
      multiply_add(out, weights, Tile{values + head * padded_keys * head_dim}, lane);
      // ordered after the tile's last use by the sync_warps above
      store_rows(a, a.out, at.head, first_row, out, inverse_sums, results, lane);
    }
  }
}

}  // namespace vitfast
