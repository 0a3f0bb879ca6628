#include "csrc/attention/attention_forward_launch.cuh"

namespace vitfast {

template void launch_attention_forward<Half>(const AttentionForward&, Stream);
template void launch_attention_forward<BFloat16>(const AttentionForward&, Stream);

}  // namespace vitfast
