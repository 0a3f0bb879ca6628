#include "csrc/layer_norm/layer_norm_launch.cuh"

namespace vitfast {

template void launch_layer_norm_forward<Half, Half>(const LayerNormForward&, Stream);
template void launch_layer_norm_forward<BFloat16, BFloat16>(const LayerNormForward&, Stream);
template void launch_layer_norm_forward<float, float>(const LayerNormForward&, Stream);
template void launch_layer_norm_forward<float, Half>(const LayerNormForward&, Stream);
template void launch_layer_norm_forward<float, BFloat16>(const LayerNormForward&, Stream);
template void launch_layer_norm_backward<Half, Half>(const LayerNormBackward&, Stream);
template void launch_layer_norm_backward<BFloat16, BFloat16>(const LayerNormBackward&, Stream);
template void launch_layer_norm_backward<float, float>(const LayerNormBackward&, Stream);
template void launch_layer_norm_backward<float, Half>(const LayerNormBackward&, Stream);
template void launch_layer_norm_backward<float, BFloat16>(const LayerNormBackward&, Stream);

}  // namespace vitfast
