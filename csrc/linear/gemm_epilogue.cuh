// The GEMM epilogues on a thread's values. Called by the CUTLASS kernels, and on the host by a program of tests/simt.

#pragma once

#include "csrc/cuda/numbers.cuh"
#include "csrc/linear/gelu.cuh"
#include "csrc/linear/gemm.h"

namespace vitfast {

// `Values`: an indexable array of `count` floats. `sums`: x weightᵀ + bias. T: the output type. Branches are uniform
// and taken once for all values, so that one kernel per type and tile suffices.
template <typename T, int count, typename Values>
__device__ __forceinline__ Values
apply_epilogue(const Values& sums, const Values& scale, const Values& residual, const GemmEpilogue& epilogue) {
  Values y = sums;
  if (epilogue.activation == EpilogueActivation::gelu) {
#pragma unroll
    for (int i = 0; i < count; ++i) y[i] = gelu_erf<T>(y[i]);
  } else if (epilogue.activation == EpilogueActivation::gelu_tanh) {
#pragma unroll
    for (int i = 0; i < count; ++i) y[i] = gelu_tanh(y[i]);
  }
#pragma unroll
  for (int i = 0; i < count; ++i) y[i] = y[i] * scale[i] + residual[i];
  return y;
}

// The gradient of the activation's input; `sums` is the gradient of its output. T: the output type.
template <typename T, int count, typename Values>
__device__ __forceinline__ Values
apply_epilogue_gradient(const Values& sums, const Values& pre_activation, EpilogueActivation activation) {
  Values gradient;
  if (activation == EpilogueActivation::gelu_tanh) {
#pragma unroll
    for (int i = 0; i < count; ++i) gradient[i] = sums[i] * gelu_tanh_derivative(pre_activation[i]);
  } else {
#pragma unroll
    for (int i = 0; i < count; ++i) gradient[i] = sums[i] * gelu_erf_derivative<T>(pre_activation[i]);
  }
  return gradient;
}

// Either of both; `source`: the residual, or the activation's input.
template <typename T, int count, typename Values>
__device__ __forceinline__ Values
finish_gemm(const Values& sums, const Values& scale, const Values& source, const GemmEpilogue& epilogue) {
  if (epilogue.is_gradient) return apply_epilogue_gradient<T, count>(sums, source, epilogue.activation);
  return apply_epilogue<T, count>(sums, scale, source, epilogue);
}

}  // namespace vitfast
