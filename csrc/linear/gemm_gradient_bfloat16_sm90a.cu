#include "csrc/linear/gemm_gradient_sm90a.cuh"

template void vitfast::launch_gemm_sm90a<vitfast::BFloat16>(const vitfast::GemmGradientArguments&, vitfast::Stream);
