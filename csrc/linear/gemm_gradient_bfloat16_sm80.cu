#include "csrc/linear/gemm_gradient_sm80.cuh"

template void vitfast::launch_gemm_sm80<vitfast::BFloat16>(const vitfast::GemmGradientArguments&, vitfast::Stream);
