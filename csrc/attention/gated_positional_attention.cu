#include "csrc/attention/gated_positional_attention_kernel.cuh"

namespace vitfast {

template void launch_gated_positional_attention<Half>(const GatedPositionalAttention&, Stream);
template void launch_gated_positional_attention<BFloat16>(const GatedPositionalAttention&, Stream);

}  // namespace vitfast
