// Selects and launches the attention backward kernels.

#pragma once

#include "csrc/attention/attention_backward_kernel.cuh"
#include "csrc/attention/attention_backward_tiled_kernel.cuh"
#include "csrc/cuda/launch.cuh"

namespace vitfast {

// Longest sequence that fits a block's shared memory; longer sequences, and float, use tiles.
template <typename T>
constexpr int attention_backward_whole_tokens(int64_t head_dim) {
  return sizeof(T) != 2 ? 0 : head_dim <= 64 ? 256 : 112;
}

inline int attention_padded_rows(const AttentionBackward& a) {
  constexpr int own_rows = AttentionBackwardTiles<Half, 64, 8, 2>::own_rows;
  return int(ceil_div(a.tokens, own_rows)) * own_rows;
}

template <typename T>
bool uses_tiles(const AttentionBackward& a) {
  return a.tokens > attention_backward_whole_tokens<T>(a.head_dim);
}

inline int64_t attention_row_statistics(const AttentionBackward& a) {
  return a.batch * a.heads * 2 * attention_padded_rows(a);
}

template <typename T, int head_dim>
void launch_attention_backward_tiled(const AttentionBackward& a, float* row_statistics, Stream stream) {
  // limited by registers (168 per thread for three blocks, 255 for two) and, for float, shared memory
  constexpr bool is_narrow = head_dim <= 64;
  constexpr int shorter = sizeof(T) / sizeof(Half);
  using OfQueries = AttentionBackwardTiles<T, head_dim, (is_narrow ? 8 : 4) / shorter, is_narrow ? 3 : 2>;
  using OfKeys = AttentionBackwardTiles<T, head_dim, is_narrow ? 8 / shorter : 2, 2>;
  static_assert(OfQueries::blocks_at_once * (OfQueries::queries_bytes + 1024) <= 228 * 1024);
  static_assert(OfKeys::blocks_at_once * (OfKeys::keys_bytes + 1024) <= 228 * 1024);
  const AttentionRowStatistics statistics{row_statistics, attention_padded_rows(a)};
  const int64_t blocks = a.batch * a.heads * (statistics.padded_rows / OfKeys::own_rows);
  const auto queries_kernel = attention_backward_tiled_kernel<T, OfQueries, false>;
  const auto keys_kernel = attention_backward_tiled_kernel<T, OfKeys, true>;
  launch(queries_kernel, blocks, attention_threads, OfQueries::queries_bytes, stream, a, statistics);
  launch(keys_kernel, blocks, attention_threads, OfKeys::keys_bytes, stream, a, statistics);
}

template <typename T, int head_dim>
void launch_attention_backward_head_dim(const AttentionBackward& a, float* row_statistics, Stream stream) {
  if (uses_tiles<T>(a)) return launch_attention_backward_tiled<T, head_dim>(a, row_statistics, stream);
  with_range<0, 4, 7, 10, 13, 16>(ceil_div(a.tokens, attention_tile_rows), [&](auto, auto warps) {
    if constexpr (warps <= ceil_div(attention_backward_whole_tokens<T>(head_dim), attention_tile_rows)) {
      // registers are allocated to four warps at a time: blocks of 7, 13 or 16 warps leave 128 per thread
      constexpr bool has_registers = head_dim <= 64 && (warps == 4 || warps == 10);
      using Shape = AttentionBackwardShape<T, head_dim, warps, has_registers ? 4 : 2>;
      static_assert(Shape::bytes <= attention_max_shared_bytes);
      launch(attention_backward_kernel<T, Shape>, a.batch * a.heads, Shape::threads, Shape::bytes, stream, a);
    }
  });
}

// T: Half, BFloat16 or float. `row_statistics`: scratch memory of attention_row_statistics numbers, 16-byte aligned, if
// uses_tiles.
template <typename T>
void launch_attention_backward(const AttentionBackward& a, float* row_statistics, Stream stream) {
  if (a.batch * a.heads * a.tokens == 0) return;
  check_attention_limits(a);
  with_range<0, 32, 64, 128>(a.head_dim, [&](auto, auto head_dim) {
    launch_attention_backward_head_dim<T, head_dim>(a, row_statistics, stream);
  });
}

}  // namespace vitfast
