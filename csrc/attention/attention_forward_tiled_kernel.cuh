// Attention forward for any number of tokens: K and V are streamed in tiles with an online softmax (FlashAttention; Dao
// et al., 2022, with the loop order of Dao, 2023).
//
// A block processes a range of queries of one head, each warp 32 of them (16 if D > 96). For each K/V tile:
//
//     logits [32, tile] = q [32, D] kᵀ
//     weights = exp2(logits - running maximum);   out and sum *= exp2(previous maximum - running maximum)
//     out [32, D] += weights v
//
// and finally out / sum. K/V tiles are double-buffered: one barrier per tile, and the next tile is copied while the
// current one is processed. Each fragment of K and V loaded from shared memory is used by two mma, one per 16 rows of
// the warp. Rows of K and V past the last token and columns past the head dimension are zero in shared memory.

#pragma once

#include "csrc/attention/attention_gemm.cuh"
#include "csrc/attention/attention_softmax.cuh"
#include "csrc/cuda/shared_memory.cuh"
#include "csrc/cuda/threads.cuh"

namespace vitfast {

// Tile sizes for head dimensions up to `head_dim`.
template <typename T, int head_dim_>
struct AttentionForwardTiles {
  static constexpr int head_dim = head_dim_;
  // limited by 255 registers per thread
  static constexpr int row_tiles = head_dim <= 96 ? 2 : 1;
  static constexpr int warp_rows = row_tiles * attention_tile_rows;
  static constexpr int block_rows = attention_warps * warp_rows;
  static constexpr int key_tiles = sizeof(T) == 2 && (head_dim <= 80 || row_tiles == 1) ? 8 : 4;  // of 8 keys
  static constexpr int key_rows = 8 * key_tiles;
  static constexpr int bytes = shared_bytes<T>(block_rows * head_dim) + 2 * shared_bytes<T>(2 * key_rows * head_dim);
};

template <typename T, typename Tiles>
__global__ void __launch_bounds__(attention_threads, 2) attention_forward_tiled_kernel(const AttentionForward a) {
  constexpr int head_dim = Tiles::head_dim, row_tiles = Tiles::row_tiles, key_tiles = Tiles::key_tiles;
  using Tile = SharedTile<T, head_dim>;
  const int tokens = int(a.tokens), warp = warp_in_block();
  const unsigned blocks_per_head = unsigned(tokens + Tiles::block_rows - 1) / Tiles::block_rows;
  const unsigned head = blockIdx.x / blocks_per_head;
  const int first_row = int(blockIdx.x - head * blocks_per_head) * Tiles::block_rows + warp * Tiles::warp_rows;

  constexpr int tile_size = Tiles::key_rows * head_dim;
  SharedMemory shared;
  T* keys = shared.take<T>(2 * tile_size);
  T* values = shared.take<T>(2 * tile_size);
  const Tile queries{shared.take<T>(Tiles::block_rows * head_dim) + warp * Tiles::warp_rows * head_dim};

  const auto tile_in = [](T* buffers, int tile) { return Tile{buffers + tile % 2 * tile_size}; };
  const auto copy_tile = [&](const HeadsView& view, T* target, int tile) {
    const int first_key = tile * Tiles::key_rows, thread = opaque(int(threadIdx.x));
    copy_rows(tile_in(target, tile), Tiles::key_rows, a, view, head, first_key, thread, attention_threads);
  };
  if (first_row < tokens) copy_rows(queries, Tiles::warp_rows, a, a.q, head, first_row, lane_in_warp(), warp_size);
  copy_tile(a.k, keys, 0);
  copy_tile(a.v, values, 0);
  commit_copies();

  float out[row_tiles][head_dim / 8][4] = {};
  RunningSoftmax running[row_tiles];
  const int tiles = (tokens + Tiles::key_rows - 1) / Tiles::key_rows;
  for (int tile = 0; tile < tiles; ++tile) {
    wait_for_copies<0>();
    sync_threads();  // the tile is complete, and no warp still reads the previous one, which the next one overwrites
    if (tile + 1 < tiles) {
      copy_tile(a.k, keys, tile + 1);
      copy_tile(a.v, values, tile + 1);
    }
    commit_copies();
    if (first_row >= tokens) continue;
    const int lane = opaque(lane_in_warp());

    float logits[row_tiles][key_tiles][4] = {};
    uint32_t weights[row_tiles][key_tiles][MatrixStep<T>::tile_registers];
    multiply_add_transposed(logits, queries, tile_in(keys, tile), lane);
#pragma unroll
    for (int i = 0; i < row_tiles; ++i) {
      const int row = first_row + i * attention_tile_rows + lane / 4;
      const LaneRows at{head, {row, row + 8}, tile * Tiles::key_rows + lane % 4 * 2};
      if (tile + 1 < tiles) {
        scale_logits<key_tiles>(a, logits[i], at);
      } else {
        scale_logits<0>(a, logits[i], at);
      }
      exchange_logits<T>(a, logits[i], at);
      float factors[2];
      continue_softmax<T>(running[i], logits[i], weights[i], factors);
#pragma unroll
      for (int j = 0; j < head_dim / 2; ++j) out[i][j / 4][j % 4] *= factors[j % 4 / 2];
    }
    multiply_add(out, weights, tile_in(values, tile), lane);
  }

  if (first_row >= tokens) return;
  sync_warp();  // every lane has read the queries, whose memory stages the results
  const int lane = lane_in_warp();
#pragma unroll
  for (int i = 0; i < row_tiles; ++i) {
    const int tile_row = first_row + i * attention_tile_rows;
    float inverse_sums[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float shift = shift_of(running[i].maxima[half]);
      const int row = tile_row + lane / 4 + 8 * half;
      inverse_sums[half] = close_row(a, head, row, shift, running[i].sums[half], lane % 4 == 0);
    }
    const Tile results{queries.data + i * attention_tile_rows * head_dim};
    store_rows(a, a.out, head, tile_row, out[i], inverse_sums, results, lane);
  }
}

}  // namespace vitfast
