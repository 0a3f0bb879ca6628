// Rounding to a narrower float format on the device. The rounding itself is csrc/common/float_format.h.

#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "csrc/common/float_format.h"
#include "csrc/common/philox.h"
#include "csrc/cuda/grid.cuh"
#include "csrc/cuda/pack.cuh"

namespace vitfast {

// An element's bits in the type that is rounded in, and back. Float and double are rounded in their own type.
__device__ __forceinline__ uint32_t to_bits(float value) {
  return __float_as_uint(value);
}
__device__ __forceinline__ uint32_t to_bits(__half value) {
  return __float_as_uint(__half2float(value));
}
__device__ __forceinline__ uint32_t to_bits(__nv_bfloat16 value) {
  return __float_as_uint(__bfloat162float(value));
}
__device__ __forceinline__ uint64_t to_bits(double value) {
  return static_cast<uint64_t>(__double_as_longlong(value));
}

__device__ __forceinline__ void from_bits(uint32_t bits, float& value) {
  value = __uint_as_float(bits);
}
__device__ __forceinline__ void from_bits(uint32_t bits, __half& value) {
  value = __float2half_rn(__uint_as_float(bits));
}
__device__ __forceinline__ void from_bits(uint32_t bits, __nv_bfloat16& value) {
  value = __float2bfloat16_rn(__uint_as_float(bits));
}
__device__ __forceinline__ void from_bits(uint64_t bits, double& value) {
  value = __longlong_as_double(static_cast<long long>(bits));
}

// A thread's unit of work: of 64 neighbours (a philox_block), one pack in each of the four groups of 16. Its packs need
// the same Philox counters, whose four words are one for each group: no random number is thrown away.
template <typename T>
constexpr int64_t slices_per_block = philox_lanes / Pack<T>::size;

template <typename T, typename Layout, Rounding rounding>
__device__ __forceinline__ T round_element(T value, const FloatFormat<Layout>& format, uint32_t random_word) {
  T rounded;
  from_bits(round_bits<Layout, rounding>(to_bits(value), format, random_word >> 1), rounded);
  return rounded;
}

template <typename T, typename Layout, Rounding rounding>
__device__ __forceinline__ void round_slice(
    const T* x, T* y, int64_t slice, const FloatFormat<Layout>& format, uint64_t key) {
  constexpr int groups = philox_block / philox_lanes;
  const int64_t block = slice / slices_per_block<T>;
  const int64_t first_lane = slice % slices_per_block<T> * Pack<T>::size;
  const int64_t first = block * philox_block + first_lane;

  Pack<T> pack[groups];
#pragma unroll
  for (int group = 0; group < groups; ++group) pack[group] = load_pack(x + first + group * philox_lanes);
#pragma unroll
  for (int i = 0; i < Pack<T>::size; ++i) {
    PhiloxWords random{};
    if constexpr (rounding == Rounding::stochastic) {
      random = philox(key, uint64_t(block * philox_lanes + first_lane + i));
    }
#pragma unroll
    for (int group = 0; group < groups; ++group) {
      T& element = pack[group].element[i];
      element = round_element<T, Layout, rounding>(element, format, random.word[group]);
    }
  }
#pragma unroll
  for (int group = 0; group < groups; ++group) store_pack(y + first + group * philox_lanes, pack[group]);
}

// Rounds x [count] into y [count], which may be x itself. The first `slices` slices are read and written in packs,
// which needs aligned pointers; the elements behind them one by one. `seed`: one number on the device, for stochastic
// rounding.
template <typename T, typename Layout, Rounding rounding>
__global__ void __launch_bounds__(256) quantize_float_kernel(
    const T* x, T* y, int64_t slices, int64_t count, const FloatFormat<Layout> format, const int64_t* seed) {
  const uint64_t key = rounding == Rounding::stochastic ? static_cast<uint64_t>(*seed) : 0;
  for (int64_t slice = thread_in_grid(); slice < slices; slice += threads_in_grid()) {
    round_slice<T, Layout, rounding>(x, y, slice, format, key);
  }
  const int64_t rest = slices / slices_per_block<T> * philox_block;
  for (int64_t i = rest + thread_in_grid(); i < count; i += threads_in_grid()) {
    uint32_t random = 0;
    if constexpr (rounding == Rounding::stochastic) {
      const uint64_t counter = uint64_t(i / philox_block * philox_lanes + i % philox_lanes);
      random = philox(key, counter).word[i / philox_lanes % 4];
    }
    y[i] = round_element<T, Layout, rounding>(x[i], format, random);
  }
}

}  // namespace vitfast
