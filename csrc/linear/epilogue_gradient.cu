#include "csrc/linear/epilogue_gradient_kernel.cuh"

namespace vitfast {

template void launch_epilogue_gradient<Half>(const EpilogueGradient&, Stream);
template void launch_epilogue_gradient<BFloat16>(const EpilogueGradient&, Stream);

}  // namespace vitfast
