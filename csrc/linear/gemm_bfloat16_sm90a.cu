#include "csrc/linear/gemm_sm90a.cuh"

namespace vitfast {

template void launch_gemm_sm90a<BFloat16>(const GemmArguments&, Stream);

}  // namespace vitfast
