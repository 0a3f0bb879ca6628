// Selects and launches the attention forward kernels.

#pragma once

#include "csrc/attention/attention_forward_kernel.cuh"
#include "csrc/attention/attention_forward_tiled_kernel.cuh"
#include "csrc/cuda/launch.cuh"

namespace vitfast {

// Wider heads, whose blocks would be few per multiprocessor, and float use tiles.
template <typename T, int head_dim>
constexpr bool attention_forward_is_whole = sizeof(T) == 2 && head_dim <= attention_whole_max_head_dim;

// Shared memory must admit as many blocks as attention_blocks_at_once plans for registers: a multiprocessor of sm_90
// has 228 KiB, of which 1 KiB per block is reserved.
template <int head_dim, int key_tiles>
constexpr bool fits_planned_blocks =
    attention_blocks_at_once(key_tiles) * (attention_shared_bytes<Half, head_dim, key_tiles>(1) + 1024) <= 228 * 1024;
static_assert(fits_planned_blocks<64, 7> && fits_planned_blocks<64, 13> && fits_planned_blocks<64, 25>);
static_assert(2 * (AttentionForwardTiles<Half, 128>::bytes + 1024) <= 228 * 1024);
static_assert(2 * (AttentionForwardTiles<float, 96>::bytes + 1024) <= 228 * 1024);
static_assert(2 * (AttentionForwardTiles<float, 128>::bytes + 1024) <= 228 * 1024);

// `bounds`: of the instances, in tiles of 8 keys.
template <typename T, int head_dim, int... bounds, typename Arguments>
void launch_attention_forward_whole(const Arguments& a, Stream stream) {
  const int tiles = attention_tiles(a.tokens);
  with_range<0, bounds...>(ceil_div(a.tokens, 8), [&](auto full_tiles, auto key_tiles) {
    // enough heads for one tile per warp, where their K and V fit
    constexpr int most_heads = key_tiles <= 7 ? attention_warps : 1;
    const int heads_per_block = tiles < most_heads ? most_heads / tiles : 1;
    static_assert(attention_shared_bytes<T, head_dim, key_tiles>(most_heads) <= attention_shared_bytes_everywhere);
    launch(
        attention_forward_kernel<T, head_dim, full_tiles, key_tiles, Arguments>,
        ceil_div(a.batch * a.heads, heads_per_block),
        attention_threads,
        attention_shared_bytes<T, head_dim, key_tiles>(heads_per_block),
        stream,
        a,
        heads_per_block);
  });
}

template <typename T, int head_dim>
void launch_attention_forward_tiled(const AttentionForward& a, Stream stream) {
  using Tiles = AttentionForwardTiles<T, head_dim>;
  static_assert(Tiles::bytes <= attention_shared_bytes_everywhere);
  const int64_t blocks = a.batch * a.heads * ceil_div(a.tokens, Tiles::block_rows);
  launch(attention_forward_tiled_kernel<T, Tiles>, blocks, attention_threads, Tiles::bytes, stream, a);
}

template <typename T, int head_dim>
void launch_attention_forward_head_dim(const AttentionForward& a, Stream stream) {
  if constexpr (attention_forward_is_whole<T, head_dim>) {
    // at most three tokens plus 7 x 7 patches, 10 x 10, 12 x 12 and 14 x 14
    if (a.tokens <= attention_whole_max_tokens)
      return launch_attention_forward_whole<T, head_dim, 7, 13, 19, 25>(a, stream);
  }
  launch_attention_forward_tiled<T, head_dim>(a, stream);
}

template <typename T>
void launch_attention_forward(const AttentionForward& a, Stream stream) {
  if (a.batch * a.heads * a.tokens == 0) return;
  check_attention_limits(a);
  const auto launch_head_dim = [&](auto, auto head_dim) { launch_attention_forward_head_dim<T, head_dim>(a, stream); };
  if constexpr (sizeof(T) == 2) {
    with_range<0, 64, 80, 128>(a.head_dim, launch_head_dim);
  } else {  // float tiles require a multiple of 32 columns
    with_range<0, 64, 96, 128>(a.head_dim, launch_head_dim);
  }
}

}  // namespace vitfast
