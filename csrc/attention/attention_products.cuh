// What the attention kernels do with tiles of rows in shared memory: bring them, multiply them, write them.

#pragma once

#include "csrc/attention/attention.h"
#include "csrc/cuda/copy_async.cuh"
#include "csrc/cuda/matrix.cuh"
#include "csrc/cuda/numbers.cuh"
#include "csrc/cuda/pack.cuh"
#include "csrc/cuda/shared_tile.cuh"
#include "csrc/cuda/warp.cuh"

namespace vitfast {

constexpr int attention_tile_rows = 16;
constexpr int attention_warps = 4;
constexpr int attention_threads = attention_warps * warp_size;

// Tiles of 16 queries.
__host__ __device__ constexpr int attention_tiles(int64_t tokens) {
  return int(tokens + attention_tile_rows - 1) / attention_tile_rows;
}

// The rows of one head; `head` counts those of all images.
template <typename T>
__device__ __forceinline__ T* head_rows(const Attention& a, const HeadsView& view, unsigned head) {
  const unsigned image = head / unsigned(a.heads);
  return static_cast<T*>(view.data) + image * view.batch_stride + (head - image * a.heads) * view.head_stride;
}

// Copies rows [0, count) of x to the tile, and zeros to rows [count, tile_rows) and to the columns from `columns` on.
// The work is shared by `threads` threads, of which this is number `thread`.
template <typename Tile, typename T>
__device__ __forceinline__ void copy_rows(
    const Tile& tile, int tile_rows, const T* x, int64_t stride, int count, int columns, int thread, int threads) {
  for (int i = thread; i < tile_rows * Tile::chunks; i += threads) {
    const int row = i / Tile::chunks, chunk = i % Tile::chunks;
    const bool inside = row < count && chunk * Tile::chunk_size < columns;
    copy_async(tile.chunk(row, chunk), inside ? x + row * stride + chunk * Tile::chunk_size : x, inside);
  }
}

// d [16 row_tiles, 8 tiles] = a bᵀ, of rows that lie in shared memory.
template <typename T, int head_dim, int row_tiles, int tiles>
__device__ __forceinline__ void multiply_transposed(
    float (&d)[row_tiles][tiles][4],
    const SharedTile<T, head_dim>& a_rows,
    const SharedTile<T, head_dim>& b_rows,
    int lane) {
#pragma unroll
  for (int row = 0; row < row_tiles; ++row) {
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) d[row][tile][i] = 0.0f;
    }
  }
  // by depth first: neighbouring products are independent, and few registers hold a
#pragma unroll
  for (int step = 0; step < head_dim / 16; ++step) {
    // the permutation of chunks repeats every 8 rows
    uint32_t a[row_tiles][4];
#pragma unroll
    for (int row = 0; row < row_tiles; ++row) {
      ldmatrix_x4(a[row], a_rows.chunk(lane % 16, 2 * step + lane / 16) + row * attention_tile_rows * head_dim);
    }
    // of two tiles, both halves of the depth
    const T* rows = b_rows.chunk(lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2);
#pragma unroll
    for (int tile = 0; tile < tiles; tile += 2) {
      uint32_t b[4];
      ldmatrix_x4(b, rows + tile * 8 * head_dim);
#pragma unroll
      for (int row = 0; row < row_tiles; ++row) {
        mma_m16n8k16<T>(d[row][tile], a[row], b[0], b[1]);
        if (tile + 1 < tiles) mma_m16n8k16<T>(d[row][tile + 1], a[row], b[2], b[3]);
      }
    }
  }
}

// d [16 row_tiles, D] += a b, of fragments a [16 row_tiles, 8 tiles] whose tiles are each one half of the depth of a
// product, and of rows b [8 tiles, D] in shared memory; behind an odd number of tiles b has another 8 rows of finite
// numbers.
template <typename T, int head_dim, int row_tiles, int tiles>
__device__ __forceinline__ void add_product(
    float (&d)[row_tiles][head_dim / 8][4],
    const uint32_t (&a_tiles)[row_tiles][tiles][2],
    const SharedTile<T, head_dim>& b_rows,
    int lane) {
  constexpr int column_steps = head_dim / 16;
  const T* rows[column_steps];  // of 16 rows, two chunks
#pragma unroll
  for (int step = 0; step < column_steps; ++step) rows[step] = b_rows.chunk(lane % 16, 2 * step + lane / 16);
#pragma unroll
  for (int tile = 0; tile < tiles; tile += 2) {
    const bool has_partner = tile + 1 < tiles;
    uint32_t a[row_tiles][4];
#pragma unroll
    for (int row = 0; row < row_tiles; ++row) {
      a[row][0] = a_tiles[row][tile][0];
      a[row][1] = a_tiles[row][tile][1];
      a[row][2] = has_partner ? a_tiles[row][tile + has_partner][0] : 0;
      a[row][3] = has_partner ? a_tiles[row][tile + has_partner][1] : 0;
    }
#pragma unroll
    for (int step = 0; step < column_steps; ++step) {
      uint32_t b[4];
      ldmatrix_x4_transposed(b, rows[step] + tile * 8 * head_dim);
#pragma unroll
      for (int row = 0; row < row_tiles; ++row) {
        mma_m16n8k16<T>(d[row][2 * step], a[row], b[0], b[1]);
        mma_m16n8k16<T>(d[row][2 * step + 1], a[row], b[2], b[3]);
      }
    }
  }
}

// Multiplies rows g and g + 8 by their factors and writes the rows that there are, through the warp's tile of shared
// memory, so that they leave in stores of 16 bytes.
template <typename T, int head_dim>
__device__ __forceinline__ void store_rows(
    T* x,
    int64_t stride,
    int count,
    int columns,
    const float (&out)[head_dim / 8][4],
    const float (&factors)[2],
    const SharedTile<T, head_dim>& tile,
    int lane) {
  constexpr int chunks = SharedTile<T, head_dim>::chunks;
#pragma unroll
  for (int chunk = 0; chunk < chunks; ++chunk) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t* target = reinterpret_cast<uint32_t*>(tile.chunk(lane / 4 + 8 * half, chunk)) + lane % 4;
      *target = round_to_pair<T>(out[chunk][2 * half] * factors[half], out[chunk][2 * half + 1] * factors[half]);
    }
  }
  sync_warp();
  for (int i = lane; i < attention_tile_rows * chunks; i += warp_size) {
    const int row = i / chunks, chunk = i % chunks;
    if (row < count && chunk * 8 < columns) {
      store_pack(x + row * stride + chunk * 8, load_pack(tile.chunk(row, chunk)));
    }
  }
}

}  // namespace vitfast
