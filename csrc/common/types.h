// Element types of tensors, independent of any toolkit's headers. Arithmetic is in csrc/cpu and csrc/cuda.

#pragma once

#include <cstdint>

namespace vitfast {

enum class Type : int64_t { float32, bfloat16, float16, float64 };

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

}  // namespace vitfast
