// Selects and launches the attention forward kernels.

#pragma once

#include "csrc/attention/attention_forward_kernel.cuh"
#include "csrc/cuda/launch.cuh"

namespace vitfast {

// Shared memory must admit as many blocks as attention_blocks_at_once plans for registers: a multiprocessor of sm_90
// has 228 KiB, of which 1 KiB per block is reserved.
template <int head_dim, int key_tiles>
constexpr bool fits_planned_blocks =
    attention_blocks_at_once(key_tiles) * (attention_shared_bytes<Half, head_dim, key_tiles>(1) + 1024) <= 228 * 1024;
static_assert(fits_planned_blocks<64, 7> && fits_planned_blocks<64, 13> && fits_planned_blocks<64, 25>);

// `bounds`: of the instances, in tiles of 8 keys.
template <typename T, int head_dim, int... bounds, typename Arguments>
void launch_attention_forward_instance(const Arguments& a, Stream stream) {
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

template <typename T>
void launch_attention_forward(const AttentionForward& a, Stream stream) {
  if (a.batch * a.heads * a.tokens == 0) return;
  check_attention_limits(a);
  // at most three tokens plus 7 x 7 patches, 10 x 10, 12 x 12 and 14 x 14
  constexpr int longest = attention_cuda_max_tokens / 8;
  launch_attention_forward_instance<T, attention_cuda_max_head_dim, 7, 13, 19, longest>(a, stream);
}

}  // namespace vitfast
