// Runs the device code of quantize_float on the host, one thread of the grid after the other: it has no barriers.

#include <cstdint>
#include <cstring>

#include <cuda_fp16.h>

#define __launch_bounds__(threads)

struct Index {
  unsigned x;
};
static Index blockIdx, blockDim, gridDim, threadIdx;

template <typename To, typename From>
static To same_bits(From from) {
  To to;
  static_assert(sizeof(to) == sizeof(from));
  std::memcpy(&to, &from, sizeof(to));
  return to;
}
static unsigned __float_as_uint(float value) {
  return same_bits<unsigned>(value);
}
static float __uint_as_float(unsigned bits) {
  return same_bits<float>(bits);
}
static long long __double_as_longlong(double value) {
  return same_bits<long long>(value);
}
static double __longlong_as_double(long long bits) {
  return same_bits<double>(bits);
}

#include "csrc/quantize/quantize_float_kernel.cuh"

namespace {

struct Arguments {
  int64_t exponent_bits, mantissa_bits;
  double max_value;
  int64_t has_inf, has_nan, signed_zero, overflow;
};

template <typename T, typename Layout, vitfast::Rounding rounding>
void run(const void* x, void* y, int64_t count, const Arguments& a, const int64_t* seed, unsigned blocks) {
  const auto max_bits = same_bits<typename Layout::Bits>(static_cast<typename Layout::Float>(a.max_value));
  const auto format = vitfast::make_float_format<Layout>(
      a.exponent_bits,
      a.mantissa_bits,
      max_bits,
      a.has_inf != 0,
      a.has_nan != 0,
      a.signed_zero != 0,
      static_cast<vitfast::Overflow>(a.overflow));
  const bool aligned = vitfast::is_pack_aligned(x) && vitfast::is_pack_aligned(y);
  const int64_t slices = aligned ? count / vitfast::philox_block * vitfast::slices_per_block<T> : 0;
  gridDim.x = blocks;
  blockDim.x = 32;
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
    for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x) {
      vitfast::quantize_float_kernel<T, Layout, rounding>(
          static_cast<const T*>(x), static_cast<T*>(y), slices, count, format, seed);
    }
  }
}

template <typename T, typename Layout>
void run_rounding(
    int64_t rounding, const void* x, void* y, int64_t count, const Arguments& a, const int64_t* seed, unsigned blocks) {
  using vitfast::Rounding;
  switch (static_cast<Rounding>(rounding)) {
    case Rounding::nearest_even:
      return run<T, Layout, Rounding::nearest_even>(x, y, count, a, seed, blocks);
    case Rounding::nearest_away:
      return run<T, Layout, Rounding::nearest_away>(x, y, count, a, seed, blocks);
    case Rounding::toward_zero:
      return run<T, Layout, Rounding::toward_zero>(x, y, count, a, seed, blocks);
    case Rounding::stochastic:
      return run<T, Layout, Rounding::stochastic>(x, y, count, a, seed, blocks);
  }
}

}  // namespace

// type: 0 float32, 1 bfloat16, 2 float16, 3 float64.
extern "C" void quantize_float_on_host(
    int64_t type,
    int64_t rounding,
    const void* x,
    void* y,
    int64_t count,
    int64_t exponent_bits,
    int64_t mantissa_bits,
    double max_value,
    int64_t has_inf,
    int64_t has_nan,
    int64_t signed_zero,
    int64_t overflow,
    int64_t seed,
    int64_t blocks) {
  const Arguments a{exponent_bits, mantissa_bits, max_value, has_inf, has_nan, signed_zero, overflow};
  const unsigned grid = static_cast<unsigned>(blocks);
  switch (type) {
    case 0:
      return run_rounding<float, vitfast::Float32Bits>(rounding, x, y, count, a, &seed, grid);
    case 1:
      return run_rounding<__nv_bfloat16, vitfast::Float32Bits>(rounding, x, y, count, a, &seed, grid);
    case 2:
      return run_rounding<__half, vitfast::Float32Bits>(rounding, x, y, count, a, &seed, grid);
    default:
      return run_rounding<double, vitfast::Float64Bits>(rounding, x, y, count, a, &seed, grid);
  }
}
