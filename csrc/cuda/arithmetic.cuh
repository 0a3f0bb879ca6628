// Arithmetic that rounds as it is written. Of a plain product and sum nvcc makes one operation with one rounding.

#pragma once

namespace vitfast {

// a + b, each a number that is rounded already.
__device__ __forceinline__ float rounded_sum(float a, float b) {
  return __fadd_rn(a, b);
}

// a * b + c with one rounding.
__device__ __forceinline__ float fused_multiply_add(float a, float b, float c) {
  return __fmaf_rn(a, b, c);
}

}  // namespace vitfast
