#include "csrc/quantize/round_elements_kernel.cuh"

namespace vitfast {

template void launch_round_elements<FloatRounding>(const DeviceElements&, const FloatRounding&, Stream);
template void launch_round_elements<FixedPointRounding>(const DeviceElements&, const FixedPointRounding&, Stream);

}  // namespace vitfast
