#include "csrc/linear/gemm_sm80.cuh"

template void vitfast::launch_gemm_sm80<vitfast::BFloat16>(const vitfast::GemmArguments&, vitfast::Stream);
