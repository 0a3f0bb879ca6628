// Rounding of ranges of elements to float and fixed-point formats. Elements are converted to the computing type in
// blocks that fit the L1 cache; the loop that rounds a block is vectorized by the compiler.

#pragma once

#include "csrc/common/fixed_format.h"
#include "csrc/common/philox.h"
#include "csrc/cpu/vector.h"
#include "csrc/quantize/round_vector_cpu_kernel.h"

namespace vitfast::VITFAST_ISA {

// Non-temporal store of one aligned vector: a result larger than the caches is not read for ownership.
VITFAST_INLINE void store_streaming(void* target, const void* source) {
#if VITFAST_VECTOR_BYTES == 64
  _mm512_stream_si512((__m512i*)target, _mm512_loadu_si512(source));
#elif defined(__F16C__)
  _mm256_stream_si256((__m256i*)target, _mm256_loadu_si256((const __m256i*)source));
#else
  std::memcpy(target, source, VITFAST_VECTOR_BYTES);
#endif
}

// Orders non-temporal stores before later stores.
VITFAST_INLINE void finish_streaming() {
#if defined(__F16C__)
  _mm_sfence();
#endif
}

// Calls f(values, random) for each block of philox_block elements: f replaces `values` by the results; `random` holds
// 31 random bits per element, if `draws`.
template <typename T, typename C, bool draws, typename F>
VITFAST_INLINE void for_each_block(const Elements& a, int64_t begin, int64_t end, const F& f) {
  static_assert(philox_block % width<C> == 0);
  const T* x = static_cast<const T*>(a.x);
  T* y = static_cast<T*>(a.y);
  const bool streams = a.streams && x != y && uintptr_t(y) % 64 == 0;
  for (int64_t block = begin / philox_block * philox_block; block < end; block += philox_block) {
    const int64_t first = block < begin ? begin : block;
    const int64_t last = block + philox_block < end ? block + philox_block : end;
    const bool whole = last - first == philox_block;
    alignas(64) C values[philox_block];
    alignas(64) T stored[philox_block];
    uint32_t random[philox_block];
    if constexpr (draws) {
      for (int64_t lane = 0; lane < philox_lanes; ++lane) {
        const PhiloxWords words = philox(a.seed, uint64_t(block / philox_block * philox_lanes + lane));
        for (int64_t w = 0; w < 4; ++w) random[w * philox_lanes + lane] = words.word[w] >> 1;
      }
    }
    const T* source = x + block;
    if (!whole) {
      std::memset(stored, 0, sizeof(stored));
      std::memcpy(stored + (first - block), x + first, size_t(last - first) * sizeof(T));
      source = stored;
    }
    for (int64_t i = 0; i < philox_block; i += width<C>) store(values + i, load(source + i));
    f(values, random);
    T* target = whole && !streams ? y + block : stored;
    for (int64_t i = 0; i < philox_block; i += width<C>) store(target + i, load(values + i));
    if (!whole) {
      std::memcpy(y + first, stored + (first - block), size_t(last - first) * sizeof(T));
    } else if (streams) {
      for (int64_t i = 0; i < philox_block; i += VITFAST_VECTOR_BYTES / int64_t(sizeof(T))) {
        store_streaming(y + block + i, stored + i);
      }
    }
  }
  if (streams) finish_streaming();
}

// y[i] = f(x[i]) by vectors of floats.
template <typename T, typename F>
VITFAST_INLINE void for_each_stored_vector(const Elements& a, int64_t begin, int64_t end, const F& f) {
  const T* x = static_cast<const T*>(a.x);
  T* y = static_cast<T*>(a.y);
  if constexpr (sizeof(T) == sizeof(float)) {
    if (a.streams && x != y && uintptr_t(y) % VITFAST_VECTOR_BYTES == 0) {
      const int64_t aligned = (begin + width<float> - 1) / width<float> * width<float>;
      const int64_t first = aligned < end ? aligned : end;
      if (begin < first) store_some<float>(y + begin, f(load_some<float>(x + begin, first - begin)), first - begin);
      for (begin = first; begin + width<float> <= end; begin += width<float>) {
        const Vector<float> v = f(load(x + begin));
        store_streaming(y + begin, &v);
      }
      finish_streaming();
    }
  }
  for_each_vector<float>(end - begin, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    store_up_to<float>(y + begin + i, f(load_up_to<float>(x + begin + i, count)), count);
  });
}

// --- float formats ---

template <typename T, typename Layout, Rounding rounding>
void quantize_float_range(const QuantizeFloat& a, int64_t begin, int64_t end) {
  using C = typename Layout::Float;
  const FloatFormat<Layout> format = format_of<Layout>(a.rounding);  // a local copy: stores cannot alias it
  for_each_block<T, C, rounding == Rounding::stochastic>(
      a.elements, begin, end, [&](C* values, const uint32_t* random) __attribute__((always_inline)) {
        for (int64_t i = 0; i < philox_block; ++i) {
          const auto bits = bit_cast<typename Layout::Bits>(values[i]);
          if constexpr (rounding == Rounding::stochastic) {
            values[i] = bit_cast<C>(round_bits<Layout, rounding>(bits, format, random[i]));
          } else {
            values[i] = bit_cast<C>(round_bits<Layout, rounding>(bits, format));
          }
        }
      });
}

// Deterministic rounding, by whole vectors.
template <typename T>
void quantize_float_vectors(const QuantizeFloat& a, int64_t begin, int64_t end) {
  with_rounding(a.rounding, [&](auto round) __attribute__((always_inline)) {
    for_each_stored_vector<T>(a.elements, begin, end, round);
  });
}

// QPyTorch does not support float64; ties are rounded away from zero.
inline void quantize_float_doubles(const QuantizeFloat& a, int64_t begin, int64_t end) {
  with_rule(a.rounding.rounding, [&](auto given) {
    constexpr Rounding rule = given == Rounding::qtorch ? Rounding::nearest_away : given;
    quantize_float_range<double, Float64Bits, rule>(a, begin, end);
  });
}

void quantize_float(const QuantizeFloat& a, int64_t begin, int64_t end) {
  const bool stochastic = a.rounding.rounding == Rounding::stochastic;
  switch (a.elements.type) {
    case Type::float32:
      return stochastic ? quantize_float_range<float, Float32Bits, Rounding::stochastic>(a, begin, end)
                        : quantize_float_vectors<float>(a, begin, end);
    case Type::bfloat16:
      return stochastic ? quantize_float_range<BFloat16, Float32Bits, Rounding::stochastic>(a, begin, end)
                        : quantize_float_vectors<BFloat16>(a, begin, end);
    case Type::float16:
      return stochastic ? quantize_float_range<Half, Float32Bits, Rounding::stochastic>(a, begin, end)
                        : quantize_float_vectors<Half>(a, begin, end);
    case Type::float64:
      return quantize_float_doubles(a, begin, end);
  }
}

// --- fixed point ---

template <typename T, typename C, Rounding rounding, bool wraps>
void quantize_fixed_range(const QuantizeFixed& a, int64_t begin, int64_t end) {
  const FixedFormat<C> format = format_of<C>(a.rounding);  // a local copy: stores cannot alias it
  for_each_block<T, C, rounding == Rounding::stochastic>(
      a.elements, begin, end, [&](C* values, const uint32_t* random) __attribute__((always_inline)) {
        for (int64_t i = 0; i < philox_block; ++i) {
          if constexpr (rounding == Rounding::stochastic) {
            values[i] = round_fixed<C, rounding, wraps>(values[i], format, random[i]);
          } else {
            values[i] = round_fixed<C, rounding, wraps>(values[i], format);
          }
        }
      });
}

// Dispatches on wrap-around outside the loop, so that the loop is vectorized.
template <typename T, typename C, Rounding rounding>
void quantize_fixed_bounded(const QuantizeFixed& a, int64_t begin, int64_t end) {
  format_of<C>(a.rounding).wraps ? quantize_fixed_range<T, C, rounding, true>(a, begin, end)
                                 : quantize_fixed_range<T, C, rounding, false>(a, begin, end);
}

void quantize_fixed(const QuantizeFixed& a, int64_t begin, int64_t end) {
  dispatch_type(a.elements.type, [&](auto stored, auto computed) {
    using T = decltype(stored);
    using C = decltype(computed);
    with_rule(a.rounding.rounding, [&](auto rule) { quantize_fixed_bounded<T, C, rule>(a, begin, end); });
  });
}

}  // namespace vitfast::VITFAST_ISA
