#include "csrc/linear/gemm_sm80.cuh"

template void vitfast::launch_gemm_sm80<vitfast::Half>(const vitfast::GemmArguments&, vitfast::Stream);
