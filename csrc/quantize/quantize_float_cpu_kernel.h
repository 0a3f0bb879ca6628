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

#if defined(__F16C__)

// True for IEEE half with all of its special values: the one format that processors convert to.
inline bool is_half(const FloatFormat<Float32Bits>& format) {
  const FloatFormat<Float32Bits> half =
      make_float_format<Float32Bits>(5, 10, 0x477fe000u, true, true, true, Overflow::inf);
  return std::memcmp(&format, &half, sizeof(half)) == 0;
}

// The same bits as quantize_range for half and the nearest even number, at the speed of memory.
inline void quantize_to_half(const float* x, float* y, int64_t count) {
  for_each_vector<float>(count, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
    const Vector<float> v = load_up_to<float>(x + i, n);
    const Vector<float> quieted = bit_cast<Vector<float>>(bit_cast<Words>(v) | 0x00400000);
    store_up_to<float>(y + i, v == v ? round_to_half(v) : quieted, n);
  });
}

#endif

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
#if defined(__F16C__)
      if (a.rounding == Rounding::nearest_even && is_half(a.format32)) {
        return quantize_to_half(static_cast<const float*>(a.x) + begin, static_cast<float*>(a.y) + begin, end - begin);
      }
#endif
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
