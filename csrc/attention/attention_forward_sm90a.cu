#include "csrc/attention/attention_wgmma_kernel.cuh"
#include "csrc/cuda/launch.cuh"

namespace vitfast {

// The number of blocks that share a head, so that there are about four times as many as fit the GPU at once: with
// fewer, the last ones leave multiprocessors idle.
inline int attention_wgmma_blocks_per_head(const AttentionForward& a, int blocks_at_once) {
  const int64_t at_once = int64_t(device_attribute(cudaDevAttrMultiProcessorCount)) * blocks_at_once;
  const int64_t wanted = ceil_div(4 * at_once, a.batch * a.heads);
  const int64_t tiles = ceil_div(a.tokens, wgmma_rows);
  return int(wanted < tiles ? wanted : tiles);
}

template <typename T>
void launch_attention_forward_sm90a(const AttentionForward& a, Stream stream) {
  check_attention_limits(a);
  with_range<0, 7, 13, 19, 25>(ceil_div(a.tokens, 8), [&](auto full_tiles, auto key_tiles) {
    constexpr int bytes = AttentionWgmmaMemory<key_tiles>::bytes, at_once = attention_wgmma_blocks_at_once(key_tiles);
    static_assert(at_once * (bytes + 1024) <= 228 * 1024);
    const int blocks_per_head = attention_wgmma_blocks_per_head(a, at_once);
    const int64_t blocks = a.batch * a.heads * blocks_per_head;
    launch(attention_wgmma_kernel<T, full_tiles, key_tiles>, blocks, warpgroup_size, bytes, stream, a, blocks_per_head);
  });
}

template void launch_attention_forward_sm90a<Half>(const AttentionForward&, Stream);
template void launch_attention_forward_sm90a<BFloat16>(const AttentionForward&, Stream);

}  // namespace vitfast
