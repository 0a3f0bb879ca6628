#include "csrc/layer_norm/layer_norm_launch.cuh"

namespace vitfast {

template void launch_layer_norm_forward<Half>(const LayerNormForward&, Stream);
template void launch_layer_norm_forward<BFloat16>(const LayerNormForward&, Stream);
template void launch_layer_norm_forward<float>(const LayerNormForward&, Stream);
template void launch_layer_norm_backward<Half>(const LayerNormBackward&, Stream);
template void launch_layer_norm_backward<BFloat16>(const LayerNormBackward&, Stream);
template void launch_layer_norm_backward<float>(const LayerNormBackward&, Stream);

}  // namespace vitfast
