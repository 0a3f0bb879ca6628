#include "csrc/linear/gemm_sm90a.cuh"

namespace vitfast {

template void launch_gemm_sm90a<Half>(const GemmArguments&, Stream);

}  // namespace vitfast
