#include "csrc/attention/attention_backward_launch.cuh"

namespace vitfast {

template void launch_attention_backward<Half>(const AttentionBackward&, Stream);
template void launch_attention_backward<BFloat16>(const AttentionBackward&, Stream);

}  // namespace vitfast
