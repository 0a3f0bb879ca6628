// Tiles of rows in shared memory: asynchronous copies, GEMMs, stores. Limits of the attention kernels.

#pragma once

#include <stdexcept>
#include <string>

#include "csrc/attention/attention.h"
#include "csrc/common/chunks.h"
#include "csrc/cuda/matrix.cuh"
#include "csrc/cuda/numbers.cuh"
#include "csrc/cuda/pack.cuh"
#include "csrc/cuda/shared_tile.cuh"
#include "csrc/cuda/threads.cuh"

namespace vitfast {

constexpr int attention_tile_rows = 16;
constexpr int attention_warps = 4;
constexpr int attention_threads = attention_warps * warp_size;

// Number of tiles of 16 queries.
__host__ __device__ constexpr int attention_tiles(int64_t tokens) {
  return int(ceil_div(tokens, attention_tile_rows));
}

// Rows must also be 16-byte aligned.
inline void check_attention_limits(const Attention& a) {
  if (a.tokens > attention_cuda_max_tokens || a.head_dim > attention_cuda_max_head_dim ||
      a.head_dim % attention_head_dim_multiple != 0) {
    throw std::runtime_error(
        "attention: the CUDA kernel takes up to 200 tokens and head dimensions up to 64 that are multiples of 8, not " +
        std::to_string(a.tokens) + " tokens and head dimension " + std::to_string(a.head_dim));
  }
  if (a.batch * a.heads * attention_tiles(a.tokens) > INT32_MAX) {
    throw std::runtime_error("attention: the CUDA kernel takes up to 2^31 - 1 tiles of 16 queries, of all heads");
  }
}

// Rows of one head from `first_row` on; `head` = image * heads + index of the head.
template <typename T>
__device__ __forceinline__ T* head_rows(const Attention& a, const HeadsView& view, unsigned head, int first_row = 0) {
  const unsigned image = head / unsigned(a.heads);
  return static_cast<T*>(view.data) + image * view.batch_stride + (head - image * a.heads) * view.head_stride +
         first_row * view.token_stride;
}

// Starts copying `tile_rows` rows of a head to the tile; rows past the last token and columns past the head dimension
// are filled with zeros. `threads` threads share the work; `thread` is the index of this one.
template <typename T, int head_dim>
__device__ __forceinline__ void copy_rows(
    const SharedTile<T, head_dim>& tile,
    int tile_rows,
    const Attention& a,
    const HeadsView& view,
    unsigned head,
    int first_row,
    int thread,
    int threads) {
  using Tile = SharedTile<T, head_dim>;
  const T* x = head_rows<const T>(a, view, head, first_row);
  const int64_t stride = view.token_stride;
  const int count = int(a.tokens) - first_row, columns = int(a.head_dim);
  for (int i = thread; i < tile_rows * Tile::chunks; i += threads) {
    const int row = i / Tile::chunks, chunk = i % Tile::chunks;
    const bool inside = row < count && chunk * Tile::chunk_size < columns;
    copy_async(tile.chunk(row, chunk), inside ? x + row * stride + chunk * Tile::chunk_size : x, inside);
  }
}

// d [16, 8 tiles] += a bᵀ, with the rows of a and b in shared memory.
template <typename T, int head_dim, int tiles>
__device__ __forceinline__ void multiply_add_transposed(
    float (&d)[tiles][4], const SharedTile<T, head_dim>& a_rows, const SharedTile<T, head_dim>& b_rows, int lane) {
  // depth is the outer loop: consecutive mma are independent, and few registers hold a
#pragma unroll
  for (int step = 0; step < SharedTile<T, head_dim>::chunks / 2; ++step) {
    uint32_t a[4];
    ldmatrix_x4(a, a_rows.chunk(lane % 16, 2 * step + lane / 16));
    // Both depth halves of two tiles. The permutation of chunks repeats every 8 rows.
    const T* rows = b_rows.chunk(lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2);
#pragma unroll
    for (int tile = 0; tile < tiles; tile += 2) {
      uint32_t b[4];
      ldmatrix_x4(b, rows + tile * 8 * head_dim);
      mma_m16n8k16<T>(d[tile], a, b[0], b[1]);
      if (tile + 1 < tiles) mma_m16n8k16<T>(d[tile + 1], a, b[2], b[3]);
    }
  }
}

// d [16, D] += a b, with fragments a [16, 8 tiles] and rows b [8 tiles, D] in shared memory. Two tiles form the depth
// of one mma; if their number is odd, b must have another 8 rows of finite numbers.
template <typename T, int head_dim, int tiles>
__device__ __forceinline__ void multiply_add(
    float (&d)[head_dim / 8][4], const uint32_t (&a_tiles)[tiles][2], const SharedTile<T, head_dim>& b_rows, int lane) {
  constexpr int column_steps = head_dim / 16;
  const T* rows[column_steps];  // two chunks of 16 rows
#pragma unroll
  for (int step = 0; step < column_steps; ++step) rows[step] = b_rows.chunk(lane % 16, 2 * step + lane / 16);
#pragma unroll
  for (int tile = 0; tile < tiles; tile += 2) {
    const bool has_partner = tile + 1 < tiles;
    const uint32_t a[4] = {
        a_tiles[tile][0],
        a_tiles[tile][1],
        has_partner ? a_tiles[tile + has_partner][0] : 0,
        has_partner ? a_tiles[tile + has_partner][1] : 0};
#pragma unroll
    for (int step = 0; step < column_steps; ++step) {
      uint32_t b[4];
      ldmatrix_x4_transposed(b, rows[step] + tile * 8 * head_dim);
      mma_m16n8k16<T>(d[2 * step], a, b[0], b[1]);
      mma_m16n8k16<T>(d[2 * step + 1], a, b[2], b[3]);
    }
  }
}

// Multiplies rows g and g + 8 by their factors and writes 16 rows of a head, except those past the last token, staged
// through the warp's tile of shared memory for 16-byte stores.
template <typename T, int head_dim>
__device__ __forceinline__ void store_rows(
    const Attention& a,
    const HeadsView& view,
    unsigned head,
    int first_row,
    const float (&out)[head_dim / 8][4],
    const float (&factors)[2],
    const SharedTile<T, head_dim>& tile,
    int lane) {
  constexpr int chunks = SharedTile<T, head_dim>::chunks, chunk_size = SharedTile<T, head_dim>::chunk_size;
  T* rows = head_rows<T>(a, view, head, first_row);
  const int64_t stride = view.token_stride;  // reading it in the loop makes two instances for sm_90a spill
  const int count = int(a.tokens) - first_row, columns = int(a.head_dim);
#pragma unroll
  for (int i = 0; i < head_dim / 8; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      T* chunk = tile.chunk(lane / 4 + 8 * half, i);
      store_pair(chunk, lane % 4, out[i][2 * half] * factors[half], out[i][2 * half + 1] * factors[half]);
    }
  }
  sync_warp();
  for (int i = lane; i < attention_tile_rows * chunks; i += warp_size) {
    const int row = i / chunks, chunk = i % chunks;
    if (row < count && chunk * chunk_size < columns) {
      store_pack(rows + row * stride + chunk * chunk_size, load_pack(tile.chunk(row, chunk)));
    }
  }
}

}  // namespace vitfast
