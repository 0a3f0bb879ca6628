#include "csrc/linear/gemm_gradient_sm80.cuh"

template void vitfast::launch_gemm_sm80<vitfast::Half>(const vitfast::GemmGradientArguments&, vitfast::Stream);
