// The host's compiler has no instruction for both: it is not told of any instruction set.

#pragma once

#include <cmath>

namespace vitfast {

inline float rounded_sum(float a, float b) {
  return a + b;
}

inline float fused_multiply_add(float a, float b, float c) {
  return std::fma(a, b, c);
}

}  // namespace vitfast
