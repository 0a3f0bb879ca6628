// Rounding of ranges of elements to float and fixed-point formats.

#pragma once

#include "csrc/common/fixed_format.h"
#include "csrc/common/philox.h"
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

// y[i] = round(x[i], 31 random bits). Elements are converted to the computing type in blocks that fit the L1 cache; the
// compiler vectorizes the loop that rounds a block.
template <typename T, typename C, typename R, typename F>
VITFAST_INLINE void round_stochastically(const Quantize<R>& a, int64_t begin, int64_t end, const F& round) {
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
    for (int64_t lane = 0; lane < philox_lanes; ++lane) {
      const PhiloxWords words = philox(a.seed, uint64_t(block / philox_block * philox_lanes + lane));
      for (int64_t w = 0; w < 4; ++w) random[w * philox_lanes + lane] = words.word[w] >> 1;
    }
    const T* source = x + block;
    if (!whole) {
      std::memset(stored, 0, sizeof(stored));
      std::memcpy(stored + (first - block), x + first, size_t(last - first) * sizeof(T));
      source = stored;
    }
    for (int64_t i = 0; i < philox_block; i += width<C>) store(values + i, load(source + i));
    for (int64_t i = 0; i < philox_block; ++i) values[i] = round(values[i], random[i]);
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

// y[i] = round(x[i]) by vectors.
template <typename T, typename C, typename R, typename F>
VITFAST_INLINE void round_vectors(const Quantize<R>& a, int64_t begin, int64_t end, const F& round) {
  const T* x = static_cast<const T*>(a.x);
  T* y = static_cast<T*>(a.y);
  if constexpr (sizeof(T) == sizeof(C)) {
    if (a.streams && x != y && uintptr_t(y) % VITFAST_VECTOR_BYTES == 0) {
      const int64_t aligned = ceil_div(begin, width<C>) * width<C>;
      const int64_t first = aligned < end ? aligned : end;
      if (begin < first) store_up_to<C>(y + begin, round(load_up_to<C>(x + begin, first - begin)), first - begin);
      for (begin = first; begin + width<C> <= end; begin += width<C>) {
        const Vector<C> v = round(load(x + begin));
        store_streaming(y + begin, &v);
      }
      finish_streaming();
    }
  }
  for_each_vector<C>(end - begin, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    store_up_to<C>(y + begin + i, round(load_up_to<C>(x + begin + i, count)), count);
  });
}

void quantize_float(const Quantize<FloatRounding>& a, int64_t begin, int64_t end) {
  dispatch_type(a.type, [&](auto stored, auto computed) {
    using T = decltype(stored);
    using C = decltype(computed);
    if (a.rounding.rounding == Rounding::stochastic) {
      const RoundFloat<C, Rounding::stochastic> round{format_of<C>(a.rounding)};
      return round_stochastically<T, C>(a, begin, end, round);
    }
    with_rounding<C>(
        a.rounding, [&](auto round) __attribute__((always_inline)) { round_vectors<T, C>(a, begin, end, round); });
  });
}

template <typename C, Rounding rounding, bool wraps>
struct RoundFixed {
  VITFAST_INLINE C operator()(C value, uint32_t random = 0) const {
    return round_fixed<C, rounding, wraps>(value, format, random);
  }

  FixedFormat<C> format;
};

void quantize_fixed(const Quantize<FixedPointRounding>& a, int64_t begin, int64_t end) {
  dispatch_type(a.type, [&](auto stored, auto computed) {
    using T = decltype(stored);
    using C = decltype(computed);
    const FixedFormat<C>& format = format_of<C>(a.rounding);
    with_rule(a.rounding.rounding, [&](auto rule) {
      with_constant<true, false>(format.wraps, [&](auto wraps) {
        using Round = RoundFixed<C, rule, wraps>;
        if constexpr (rule == Rounding::stochastic) {
          round_stochastically<T, C>(a, begin, end, Round{format});
        } else {
          round_vectors<T, C>(a, begin, end, EachElement<C, Round>{{format}});
        }
      });
    });
  });
}

}  // namespace vitfast::VITFAST_ISA
