// The words of CUDA's language that kernels use, for a host compiler. Every file of a test program begins with this.

#pragma once

#include "tests/simt/runtime/simt.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

#define threadIdx (simt::thread_index())
#define blockIdx (simt::block_index())
#define blockDim (simt::block_size())
#define gridDim (simt::grid_size())
