#include "csrc/cuda/partial_sums.cuh"

namespace vitfast {

template void launch_partial_sums<Half>(const float*, void*, int64_t, int64_t, Stream);
template void launch_partial_sums<BFloat16>(const float*, void*, int64_t, int64_t, Stream);
template void launch_partial_sums<float>(const float*, void*, int64_t, int64_t, Stream);

}  // namespace vitfast
