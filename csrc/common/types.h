// The element types of tensors, without a toolkit's headers: what they are, not how they are computed with.

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
