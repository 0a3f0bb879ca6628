// Vectors of one instruction set: load and store with conversion, exp, erf. Arithmetic is that of GCC's and Clang's
// vector types.
//
// Included only by the translation units in csrc/cpu/isa/, which define VITFAST_ISA (a namespace) and
// VITFAST_VECTOR_BYTES. No std templates here: the linker keeps one copy of each, perhaps the one compiled for the
// widest instruction set.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "csrc/cpu/kernels.h"

namespace vitfast::VITFAST_ISA {

#define VITFAST_INLINE inline __attribute__((always_inline))
#define VITFAST_STRINGIZE_(name) #name
#define VITFAST_STRINGIZE(name) VITFAST_STRINGIZE_(name)

// C is the accumulation type: float, or double for float64 tensors.
template <typename C>
struct VectorTypes {
  using Integer = std::conditional_t<sizeof(C) == 4, int32_t, int64_t>;
  typedef C Vector __attribute__((vector_size(VITFAST_VECTOR_BYTES)));
  typedef Integer Integers __attribute__((vector_size(VITFAST_VECTOR_BYTES)));
};

template <typename C>
using Vector = typename VectorTypes<C>::Vector;
template <typename C>
using Integers = typename VectorTypes<C>::Integers;

template <typename C>
constexpr int64_t width = VITFAST_VECTOR_BYTES / int64_t(sizeof(C));

typedef uint16_t Halves __attribute__((vector_size(VITFAST_VECTOR_BYTES / 2)));
typedef uint32_t Words __attribute__((vector_size(VITFAST_VECTOR_BYTES)));

template <typename C>
VITFAST_INLINE Vector<C> broadcast(C value) {
  return value - Vector<C>{};  // adding would turn -0 into +0, and costs an instruction
}

// --- loads and stores of whole vectors, converted from and to the stored type T ---

VITFAST_INLINE Vector<float> load(const float* p) {
  Vector<float> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

VITFAST_INLINE Vector<double> load(const double* p) {
  Vector<double> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

VITFAST_INLINE void store(float* p, Vector<float> v) {
  std::memcpy(p, &v, sizeof(v));
}
VITFAST_INLINE void store(double* p, Vector<double> v) {
  std::memcpy(p, &v, sizeof(v));
}

VITFAST_INLINE Vector<float> load(const BFloat16* p) {
  Halves halves;
  std::memcpy(&halves, p, sizeof(halves));
  return bit_cast<Vector<float>>(__builtin_convertvector(halves, Words) << 16);
}

// Rounded to bfloat16, as the bits of float32.
VITFAST_INLINE Words round_to_bfloat16_bits(Vector<float> v) {
  const Words bits = bit_cast<Words>(v);
  const Words rounded = bits + 0x7fff + ((bits >> 16) & 1);
  const Words quieted = bits | 0x400000;
  return ((bits & 0x7fffffff) > 0x7f800000 ? quieted : rounded) & 0xffff0000;
}

VITFAST_INLINE void store(BFloat16* p, Vector<float> v) {
  const Halves halves = __builtin_convertvector(round_to_bfloat16_bits(v) >> 16, Halves);
  std::memcpy(p, &halves, sizeof(halves));
}

// GCC 12 warns about _mm512_cvtph_ps and _mm512_cvtps_ph.
VITFAST_INLINE Vector<float> from_halves(Halves halves) {
#if VITFAST_VECTOR_BYTES == 64
  return (Vector<float>)_mm512_maskz_cvtph_ps(__mmask16(-1), (__m256i)halves);
#elif defined(__F16C__)
  return (Vector<float>)_mm256_cvtph_ps((__m128i)halves);
#else
  const Words bits = __builtin_convertvector(halves, Words);
  const Words magnitude = bits & 0x7fff;
  // a multiplication moves the exponent's bias and normalizes subnormals, exactly
  const Vector<float> scaled = bit_cast<Vector<float>>(magnitude << 13) * 0x1p112f;
  const Words finite = bit_cast<Words>(scaled);
  const Words number = magnitude >= 0x7c00 ? (finite | 0x7f800000) : finite;
  return bit_cast<Vector<float>>(number | ((bits & 0x8000) << 16));
#endif
}

VITFAST_INLINE Halves to_halves(Vector<float> v) {
#if VITFAST_VECTOR_BYTES == 64
  return (Halves)_mm512_maskz_cvtps_ph(__mmask16(-1), (__m512)v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__)
  return (Halves)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
#else
  Halves halves;
  static const FloatFormat<Float32Bits> half =
      make_float_format<Float32Bits>(5, 10, 0x477fe000u, true, true, true, Overflow::inf);
  for (int64_t i = 0; i < width<float>; ++i) {
    const uint32_t bits = round_bits<Float32Bits, Rounding::nearest_even>(bit_cast<uint32_t>(float(v[i])), half);
    const uint32_t magnitude = bits & 0x7fffffff;
    const float value = bit_cast<float>(magnitude) * 0x1p-112f;  // exact: the value fits
    const uint32_t number =
        magnitude >= 0x7f800000 ? 0x7c00 | ((magnitude >> 13) & 0x3ff) : bit_cast<uint32_t>(value) >> 13;
    halves[i] = uint16_t(number | ((bits >> 16) & 0x8000));
  }
  return halves;
#endif
}

VITFAST_INLINE Vector<float> load(const Half* p) {
  Halves halves;
  std::memcpy(&halves, p, sizeof(halves));
  return from_halves(halves);
}

VITFAST_INLINE void store(Half* p, Vector<float> v) {
  const Halves halves = to_halves(v);
  std::memcpy(p, &halves, sizeof(halves));
}

// --- the first `count` elements of a vector; the others are zero, or left alone ---

template <typename C, typename T>
VITFAST_INLINE Vector<C> load_some(const T* p, int64_t count) {
  T buffer[width<C>] = {};
  std::memcpy(buffer, p, size_t(count) * sizeof(T));
  return load(buffer);
}

template <typename C, typename T>
VITFAST_INLINE Vector<C> load_up_to(const T* p, int64_t count) {
  return count == width<C> ? load(p) : load_some<C>(p, count);
}

template <typename C, typename T>
VITFAST_INLINE void store_up_to(T* p, Vector<C> v, int64_t count) {
  if (count == width<C>) return store(p, v);
  T buffer[width<C>];
  store(buffer, v);
  std::memcpy(p, buffer, size_t(count) * sizeof(T));
}

// Calls f(offset, count) for each vector of `size` elements; only the last one may have a count below the width.
template <typename C, typename F>
VITFAST_INLINE void for_each_vector(int64_t size, const F& f) {
  int64_t i = 0;
  for (; i + width<C> <= size; i += width<C>) f(i, width<C>);
  if (i < size) f(i, size - i);
}

// --- across a vector ---

template <typename C>
VITFAST_INLINE C sum_across(Vector<C> v) {
  C sum = 0;
  for (int64_t i = 0; i < width<C>; ++i) sum += v[i];
  return sum;
}

// Sums vectors in 64 bytes of lanes on every instruction set: with the lanes of one narrow vector, each lane would sum
// a longer run, which rounds more.
template <typename C>
struct LaneSums {
  static constexpr int count = 64 / VITFAST_VECTOR_BYTES;

  VITFAST_INLINE void operator+=(Vector<C> v) {
    const Vector<C> sum = sums[0] + v;
    for (int s = 1; s < count; ++s) sums[s - 1] = sums[s];
    sums[count - 1] = sum;
  }
  VITFAST_INLINE Vector<C> total() const {
    Vector<C> total = sums[0];
    for (int s = 1; s < count; ++s) total += sums[s];
    return total;
  }

  Vector<C> sums[count] = {};
};

template <typename C>
VITFAST_INLINE C max_across(Vector<C> v) {
  C max = v[0];
  for (int64_t i = 1; i < width<C>; ++i) max = v[i] > max ? v[i] : max;
  return max;
}

#if VITFAST_VECTOR_BYTES == 64
// Reduces a vector by halves with join(a, b); GCC 12 warns about its own _mm512_reduce_max_ps.
template <typename Join>
VITFAST_INLINE float join_lanes(Vector<float> v, const Join& join) {
  const __m256 lower = _mm512_maskz_extractf32x8_ps(__mmask8(-1), (__m512)v, 0);
  const __m256 eight = join(lower, _mm512_maskz_extractf32x8_ps(__mmask8(-1), (__m512)v, 1));
  const __m256 four = join(eight, _mm256_permute2f128_ps(eight, eight, 1));
  const __m256 two = join(four, _mm256_permute_ps(four, 0x4e));
  return _mm256_cvtss_f32(join(two, _mm256_permute_ps(two, 0xb1)));
}
#endif

VITFAST_INLINE float sum_lanes(Vector<float> v) {
#if VITFAST_VECTOR_BYTES == 64
  return join_lanes(v, [](__m256 a, __m256 b) __attribute__((always_inline)) { return a + b; });
#else
  return sum_across<float>(v);
#endif
}

VITFAST_INLINE float largest_lane(Vector<float> v) {
#if VITFAST_VECTOR_BYTES == 64
  return join_lanes(v, [](__m256 a, __m256 b) __attribute__((always_inline)) { return _mm256_max_ps(a, b); });
#else
  return max_across<float>(v);
#endif
}

// Divides a row by its norm, as torch.nn.functional.normalize, and multiplies it by a factor.
template <typename T>
VITFAST_INLINE void divide_by_norm(T* x, int64_t size, float factor) {
  Vector<float> squares{};
  for_each_vector<float>(size, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
    const Vector<float> v = load_up_to<float>(x + i, n);
    squares += v * v;
  });
  const float norm = __builtin_sqrtf(sum_lanes(squares));
  factor /= norm > 1e-12f ? norm : 1e-12f;
  for_each_vector<float>(size, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
    store_up_to<float>(x + i, load_up_to<float>(x + i, n) * factor, n);
  });
}

// Memory of a task, aligned to a cache line; not initialized.
template <typename C>
struct Scratch {
  explicit Scratch(int64_t size)
      : data(static_cast<C*>(::operator new(size_t(size) * sizeof(C), std::align_val_t(64)))) {}
  ~Scratch() { ::operator delete(data, std::align_val_t(64)); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  C* const data;
};

// --- functions; float by polynomials, double by the C library ---

// a * b + c with one rounding, on every instruction set.
VITFAST_INLINE Vector<float> fused_multiply_add(Vector<float> a, Vector<float> b, Vector<float> c) {
#if VITFAST_VECTOR_BYTES == 64
  return (Vector<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Vector<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  for (int64_t i = 0; i < width<float>; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
#endif
}

// e^x for x <= 88, to 1 ulp; results below 2^-126 are zero.
VITFAST_INLINE Vector<float> exp(Vector<float> x) {
  const float to_integer = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Vector<float> shifted = x * 1.44269504f + to_integer;
  const Vector<float> n = shifted - to_integer;
  const Vector<float> r = (x - n * 0.693359375f) - n * -2.12194440e-4f;  // ln 2 in two parts (Cody and Waite)
  Vector<float> p = broadcast(1.9875691500e-4f);                         // Cephes' expf polynomial
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const Integers<float> exponent_field = (bit_cast<Integers<float>>(shifted) - (0x4b400000 - 127)) << 23;
  return x < -87.336f ? broadcast(0.0f) : p * bit_cast<Vector<float>>(exponent_field);
}

VITFAST_INLINE Vector<double> exp(Vector<double> x) {
  for (int64_t i = 0; i < width<double>; ++i) x[i] = ::exp(x[i]);
  return x;
}

// 1 / x to 1 ulp, for normal x: AVX-512 divides at a third of the speed of this.
VITFAST_INLINE Vector<float> reciprocal(Vector<float> x) {
#if VITFAST_VECTOR_BYTES == 64
  const Vector<float> estimate = (Vector<float>)_mm512_rcp14_ps((__m512)x);
  return estimate * (2.0f - x * estimate);
#else
  return 1.0f / x;
#endif
}

// Calls f(T{}, C{}) with the stored and the accumulation type of a Type.
template <typename F>
inline void dispatch_type(Type type, const F& f) {
  switch (type) {
    case Type::float32:
      return f(float{}, float{});
    case Type::bfloat16:
      return f(BFloat16{}, float{});
    case Type::float16:
      return f(Half{}, float{});
    case Type::float64:
      return f(double{}, double{});
  }
}

}  // namespace vitfast::VITFAST_ISA
