// Element types of tensors, independent of any toolkit's headers. Arithmetic is in csrc/cpu and csrc/cuda.

#pragma once

#include <cstdint>
#include <type_traits>

namespace vitfast {

enum class Type : int64_t { float32, bfloat16, float16, float64 };

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// Calls f with the one of `values` that equals `value`, as a std::integral_constant.
template <auto... values, typename V, typename F>
inline __attribute__((always_inline)) void with_constant(V value, const F& f) {
  (void)((value == values && (f(std::integral_constant<V, values>{}), true)) || ...);
}

}  // namespace vitfast
