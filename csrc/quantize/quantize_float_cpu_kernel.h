// Rounding of a range of elements to a narrower float format.

#pragma once

#include "csrc/common/philox.h"
#include "csrc/cpu/dispatch_type.h"
#include "csrc/cpu/vector.h"

namespace vitfast::VITFAST_ISA {

// Elements are converted to the layout's type by blocks that stay in the first-level cache, so that the rounding loop
// is the same for every stored type, and is vectorized by the compiler.
template <typename T, typename Layout, Rounding rounding>
void quantize_range(const QuantizeFloat& a, const FloatFormat<Layout>& described, int64_t begin, int64_t end) {
  using C = typename Layout::Float;
  using Bits = typename Layout::Bits;
  static_assert(philox_block % width<float> == 0);
  const FloatFormat<Layout> format = described;  // a local copy: the stores below cannot alias it
  const T* x = static_cast<const T*>(a.x);
  T* y = static_cast<T*>(a.y);
  for (int64_t block = begin / philox_block * philox_block; block < end; block += philox_block) {
    const int64_t first = block < begin ? begin : block;
    const int64_t last = block + philox_block < end ? block + philox_block : end;
    const bool whole = last - first == philox_block;
    Bits bits[philox_block] = {};
    uint32_t random[philox_block];
    if constexpr (rounding == Rounding::stochastic) {
      for (int64_t lane = 0; lane < philox_lanes; ++lane) {
        const PhiloxWords words = philox(a.seed, uint64_t(block / philox_block * philox_lanes + lane));
        for (int64_t w = 0; w < 4; ++w) random[w * philox_lanes + lane] = words.word[w] >> 1;
      }
    }
    T partial[philox_block] = {};
    const T* source = x + block;
    if (!whole) {
      std::memcpy(partial + (first - block), x + first, size_t(last - first) * sizeof(T));
      source = partial;
    }
    for (int64_t i = 0; i < philox_block; i += width<C>) {
      const Vector<C> v = load(source + i);
      std::memcpy(bits + i, &v, sizeof(v));
    }
    for (int64_t i = 0; i < philox_block; ++i) {
      if constexpr (rounding == Rounding::stochastic) {
        bits[i] = round_bits<Layout, rounding>(bits[i], format, random[i]);
      } else {
        bits[i] = round_bits<Layout, rounding>(bits[i], format);
      }
    }
    T* target = whole ? y + block : partial;
    for (int64_t i = 0; i < philox_block; i += width<C>) {
      Vector<C> v;
      std::memcpy(&v, bits + i, sizeof(v));
      store(target + i, v);
    }
    if (!whole) std::memcpy(y + first, partial + (first - block), size_t(last - first) * sizeof(T));
  }
}

template <typename T, typename Layout>
void quantize_typed(const QuantizeFloat& a, const FloatFormat<Layout>& format, int64_t begin, int64_t end) {
  switch (a.rounding) {
    case Rounding::nearest_even:
      return quantize_range<T, Layout, Rounding::nearest_even>(a, format, begin, end);
    case Rounding::nearest_away:
      return quantize_range<T, Layout, Rounding::nearest_away>(a, format, begin, end);
    case Rounding::toward_zero:
      return quantize_range<T, Layout, Rounding::toward_zero>(a, format, begin, end);
    case Rounding::stochastic:
      return quantize_range<T, Layout, Rounding::stochastic>(a, format, begin, end);
  }
}

void quantize_float(const QuantizeFloat& a, int64_t begin, int64_t end) {
  switch (a.type) {
    case Type::float32:
      return quantize_typed<float>(a, a.format32, begin, end);
    case Type::bfloat16:
      return quantize_typed<BFloat16>(a, a.format32, begin, end);
    case Type::float16:
      return quantize_typed<Half>(a, a.format32, begin, end);
    case Type::float64:
      return quantize_typed<double>(a, a.format64, begin, end);
  }
}

}  // namespace vitfast::VITFAST_ISA
