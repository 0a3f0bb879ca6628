// Selects and launches the attention forward kernels.

#pragma once

#include "csrc/attention/attention_forward_kernel.cuh"
#include "csrc/attention/attention_forward_tiled_kernel.cuh"
#include "csrc/cuda/launch.cuh"

namespace vitfast {

// Longest sequence whose K and V are kept whole in shared memory: ViTs with 14 x 14 patches. Wider heads, whose blocks
// would be few per multiprocessor, and float use tiles.
template <typename T>
constexpr int attention_forward_whole_tokens(int head_dim) {
  return sizeof(T) == 2 && head_dim <= 64 ? 200 : 0;
}

// Shared memory must admit as many blocks as attention_blocks_at_once plans for registers: a multiprocessor of sm_90
// has 228 KiB, of which 1 KiB per block is reserved.
template <int head_dim, int key_tiles>
constexpr bool fits_planned_blocks =
    attention_blocks_at_once(head_dim, key_tiles) * (attention_shared_bytes<Half, head_dim, key_tiles>(1) + 1024) <=
    228 * 1024;
static_assert(fits_planned_blocks<64, 7> && fits_planned_blocks<64, 13> && fits_planned_blocks<64, 25>);
static_assert(2 * (AttentionForwardTiles<Half, 128>::bytes + 1024) <= 228 * 1024);
static_assert(2 * (AttentionForwardTiles<float, 96>::bytes + 1024) <= 228 * 1024);
static_assert(2 * (AttentionForwardTiles<float, 128>::bytes + 1024) <= 228 * 1024);

// `bounds`: of the instances, in tiles of 8 keys.
template <typename T, int head_dim, int... bounds, typename Arguments>
void launch_attention_forward_whole(const Arguments& a, Stream stream) {
  // enough heads for one tile per warp
  const int tiles = attention_tiles(a.tokens);
  const int heads_per_block = tiles < attention_warps ? attention_warps / tiles : 1;
  with_range<0, bounds...>(ceil_div(a.tokens, 8), [&](auto full_tiles, auto key_tiles) {
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
  const int64_t blocks = a.batch * a.heads * ceil_div(a.tokens, Tiles::block_rows);
  launch(attention_forward_tiled_kernel<T, Tiles>, blocks, attention_threads, Tiles::bytes, stream, a);
}

template <typename T, int head_dim>
void launch_attention_forward_head_dim(const AttentionForward& a, Stream stream) {
  if constexpr (attention_forward_whole_tokens<T>(head_dim) != 0) {
    // at most three tokens plus 7 x 7 patches, 10 x 10, 12 x 12 and 14 x 14
    if (a.tokens <= attention_forward_whole_tokens<T>(head_dim))
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
