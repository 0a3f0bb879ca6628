// Selects and launches the attention backward kernels.

#pragma once

#include "csrc/attention/attention_backward_kernel.cuh"
#include "csrc/attention/attention_backward_tiled_kernel.cuh"
#include "csrc/cuda/launch.cuh"

namespace vitfast {

template <typename T, int head_dim>
void launch_attention_backward_tiled(const AttentionBackward& a, float* row_statistics, Stream stream) {
  // limited by registers (168 per thread for three blocks, 255 for two) and, for float, shared memory
  constexpr bool is_narrow = head_dim <= 64;
  constexpr int shorter = sizeof(T) / sizeof(Half);
  using OfQueries = AttentionBackwardTiles<T, head_dim, (is_narrow ? 8 : 4) / shorter, is_narrow ? 3 : 2>;
  using OfKeys = AttentionBackwardTiles<T, head_dim, is_narrow ? 8 / shorter : 2, 2>;
  static_assert(OfQueries::blocks_at_once * (OfQueries::queries_bytes + 1024) <= 228 * 1024);
  static_assert(OfKeys::blocks_at_once * (OfKeys::keys_bytes + 1024) <= 228 * 1024);
  static_assert(OfQueries::queries_bytes <= attention_shared_bytes_everywhere);
  static_assert(OfKeys::keys_bytes <= attention_shared_bytes_everywhere);
  static_assert(OfKeys::own_rows == attention_backward_tile_rows);
  const AttentionRowStatistics statistics{row_statistics, attention_padded_rows(a)};
  const int64_t blocks = a.batch * a.heads * (statistics.padded_rows / OfKeys::own_rows);
  const auto queries_kernel = attention_backward_tiled_kernel<T, OfQueries, false>;
  const auto keys_kernel = attention_backward_tiled_kernel<T, OfKeys, true>;
  launch(queries_kernel, blocks, attention_threads, OfQueries::queries_bytes, stream, a, statistics);
  launch(keys_kernel, blocks, attention_threads, OfKeys::keys_bytes, stream, a, statistics);
}

// Uses tiles if there is memory for `row_statistics`. Instances for sequences of at most three tokens plus 7 x 7
// patches (ViT-B/32 at 224 pixels, DVT's first exit), 8 x 8 or 10 x 10 (CIFAR, DVT's second exit), and 14 x 14 (224).
template <typename T, int head_dim>
void launch_attention_backward_head_dim(const AttentionBackward& a, float* row_statistics, Stream stream) {
  if (row_statistics != nullptr) return launch_attention_backward_tiled<T, head_dim>(a, row_statistics, stream);
  constexpr int whole_tokens = attention_backward_whole_tokens<T>(head_dim, attention_backward_largest_bytes);
  if constexpr (whole_tokens != 0) {
    with_range<0, 4, 7, 13>(ceil_div(a.tokens, attention_tile_rows), [&](auto, auto warps) {
      static_assert(attention_tile_rows * 13 == whole_tokens);
      // registers are allocated to four warps at a time: blocks of 7 or 13 warps leave 128 per thread
      using Shape = AttentionBackwardShape<T, head_dim, warps, warps == 4 ? 4 : 2>;
      static_assert(
          Shape::bytes <= (warps == 13 ? attention_backward_largest_bytes : attention_shared_bytes_everywhere));
      launch(attention_backward_kernel<T, Shape>, a.batch * a.heads, Shape::threads, Shape::bytes, stream, a);
    });
  }
}

template <typename T>
void launch_attention_backward(const AttentionBackward& a, float* row_statistics, Stream stream) {
  if (a.batch * a.heads * a.tokens == 0) return;
  check_attention_limits(a);
  with_range<0, 64, 128>(a.head_dim, [&](auto, auto head_dim) {
    launch_attention_backward_head_dim<T, head_dim>(a, row_statistics, stream);
  });
}

}  // namespace vitfast
