// A range of elements by blocks that stay in the first-level cache, in the type that is computed in: what rounds a
// block is the same for every stored type, and is vectorized by the compiler.

#pragma once

#include "csrc/common/philox.h"
#include "csrc/cpu/vector.h"

namespace vitfast::VITFAST_ISA {

// Writes one aligned vector past the caches: a result that does not fit into them would be read from memory only to be
// overwritten.
VITFAST_INLINE void store_streaming(void* target, const void* source) {
#if VITFAST_VECTOR_BYTES == 64
  _mm512_stream_si512((__m512i*)target, _mm512_loadu_si512(source));
#elif defined(__F16C__)
  _mm256_stream_si256((__m256i*)target, _mm256_loadu_si256((const __m256i*)source));
#else
  std::memcpy(target, source, VITFAST_VECTOR_BYTES);
#endif
}

// Makes streamed stores visible to other threads before what the thread writes next.
VITFAST_INLINE void finish_streaming() {
#if defined(__F16C__)
  _mm_sfence();
#endif
}

// Calls f(values, random) for each block of philox_block elements: `values` hold the elements and take the results;
// `random` are 31 random bits each, if `draws`.
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

}  // namespace vitfast::VITFAST_ISA
