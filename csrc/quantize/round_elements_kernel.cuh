// Rounding of every element on the device. A rounder says how one number is rounded:
//
//     using Computed = float or double;      the type that it rounds in
//     static constexpr bool draws;           whether it takes random numbers
//     __device__ Computed operator()(Computed value, uint32_t random) const;   31 random bits

#pragma once

#include <cstdint>

#include "csrc/common/fixed_format.h"
#include "csrc/common/float_format.h"
#include "csrc/common/philox.h"
#include "csrc/cuda/grid.cuh"
#include "csrc/cuda/numbers.cuh"
#include "csrc/cuda/pack.cuh"

namespace vitfast {

template <typename Layout, Rounding rounding>
struct FloatRounder {
  using Computed = typename Layout::Float;
  static constexpr bool draws = rounding == Rounding::stochastic;
  FloatFormat<Layout> format;
  __device__ __forceinline__ Computed operator()(Computed value, uint32_t random) const {
    return from_bits(round_bits<Layout, rounding>(bits_of(value), format, random));
  }
};

template <typename C, Rounding rounding>
struct FixedRounder {
  using Computed = C;
  static constexpr bool draws = rounding == Rounding::stochastic;
  FixedFormat<C> format;
  __device__ __forceinline__ C operator()(C value, uint32_t random) const {
    return format.wraps ? round_fixed<C, rounding, true>(value, format, random)
                        : round_fixed<C, rounding, false>(value, format, random);
  }
};

constexpr int round_elements_threads = 256;

// An element in the type that is rounded in, and back. Float and double are rounded in their own type.
template <typename T>
__device__ __forceinline__ float widen(T value) {
  return to_float(value);
}
__device__ __forceinline__ double widen(double value) {
  return value;
}

template <typename T>
__device__ __forceinline__ T narrow(float value) {
  return round_to<T>(value);
}
template <typename T>
__device__ __forceinline__ T narrow(double value) {
  return value;
}

// A thread's unit of work: of 64 neighbours (a philox_block), one pack in each of the four groups of 16. Its packs need
// the same Philox counters, whose four words are one for each group: no random number is thrown away.
template <typename T>
constexpr int64_t slices_per_block = philox_lanes / Pack<T>::size;

template <typename T, typename Rounder>
__device__ __forceinline__ T round_element(T value, const Rounder& rounder, uint32_t random_word) {
  return narrow<T>(rounder(widen(value), random_word >> 1));
}

template <typename T, typename Rounder>
__device__ __forceinline__ void round_slice(const T* x, T* y, int64_t slice, const Rounder& rounder, uint64_t key) {
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
    if constexpr (Rounder::draws) {
      random = philox(key, uint64_t(block * philox_lanes + first_lane + i));
    }
#pragma unroll
    for (int group = 0; group < groups; ++group) {
      T& element = pack[group].element[i];
      element = round_element(element, rounder, random.word[group]);
    }
  }
#pragma unroll
  for (int group = 0; group < groups; ++group) store_pack(y + first + group * philox_lanes, pack[group]);
}

// Rounds x [count] into y [count], which may be x itself. The first `slices` slices are read and written in packs,
// which needs aligned pointers; the elements behind them one by one. `seed`: one number on the device, for stochastic
// rounding.
template <typename T, typename Rounder>
__global__ void __launch_bounds__(round_elements_threads)
    round_elements_kernel(const T* x, T* y, int64_t slices, int64_t count, const Rounder rounder, const int64_t* seed) {
  const uint64_t key = Rounder::draws ? static_cast<uint64_t>(*seed) : 0;
  for (int64_t slice = thread_in_grid(); slice < slices; slice += threads_in_grid()) {
    round_slice(x, y, slice, rounder, key);
  }
  const int64_t rest = slices / slices_per_block<T> * philox_block;
  for (int64_t i = rest + thread_in_grid(); i < count; i += threads_in_grid()) {
    uint32_t random = 0;
    if constexpr (Rounder::draws) {
      const uint64_t counter = uint64_t(i / philox_block * philox_lanes + i % philox_lanes);
      random = philox(key, counter).word[i / philox_lanes % 4];
    }
    y[i] = round_element(x[i], rounder, random);
  }
}

}  // namespace vitfast
