// The GEMM epilogues on one element. Called by the CUTLASS kernels, and on the host by programs of tests/simt.

#pragma once

#include "csrc/linear/gelu.cuh"
#include "csrc/linear/gemm.h"

namespace vitfast {

// T: the output type.
template <typename T, GemmEpilogue epilogue>
__device__ __forceinline__ float finish_gemm(float sum, float scale, float source) {
  if constexpr (epilogue == GemmEpilogue::linear) return sum * scale + source;
  if constexpr (epilogue == GemmEpilogue::gelu) return gelu_erf<T>(sum);
  if constexpr (epilogue == GemmEpilogue::gelu_tanh) return gelu_tanh(sum);
  if constexpr (epilogue == GemmEpilogue::gelu_gradient) return sum * gelu_erf_derivative<T>(source);
}

// f(std::integral_constant<GemmEpilogue, epilogue>{})
template <typename F>
void with_epilogue(GemmEpilogue epilogue, const F& f) {
  switch (epilogue) {
    case GemmEpilogue::linear:
      return f(std::integral_constant<GemmEpilogue, GemmEpilogue::linear>{});
    case GemmEpilogue::gelu:
      return f(std::integral_constant<GemmEpilogue, GemmEpilogue::gelu>{});
    case GemmEpilogue::gelu_tanh:
      return f(std::integral_constant<GemmEpilogue, GemmEpilogue::gelu_tanh>{});
    case GemmEpilogue::gelu_gradient:
      return f(std::integral_constant<GemmEpilogue, GemmEpilogue::gelu_gradient>{});
  }
}

}  // namespace vitfast
