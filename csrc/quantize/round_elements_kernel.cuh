// Elementwise rounding on the device. A Rounder rounds one number:
//
//     using Computed = float or double;      // the computing type
//     static constexpr bool draws;           // whether it uses random numbers
//     __device__ Computed operator()(Computed value, uint32_t random) const;   // 31 random bits

#pragma once

#include <cstdint>
#include <type_traits>

#include "csrc/common/fixed_format.h"
#include "csrc/common/float_format.h"
#include "csrc/common/philox.h"
#include "csrc/cuda/launch.cuh"
#include "csrc/cuda/numbers.cuh"
#include "csrc/cuda/pack.cuh"
#include "csrc/cuda/threads.cuh"
#include "csrc/quantize/round_elements.h"

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

// A slice is a thread's unit of work: one pack in each of the four groups of 16 in 64 elements (a philox_block). The
// packs share Philox counters, one word for each group, so that no random number is discarded.
template <typename T>
constexpr int64_t slices_per_block = philox_lanes / Pack<T>::size;

template <typename T, typename Rounder>
__device__ __forceinline__ T round_element(T value, const Rounder& rounder, uint32_t random_word) {
  if constexpr (std::is_same_v<T, double>) {
    return rounder(value, random_word >> 1);
  } else {
    return round_to<T>(rounder(to_float(value), random_word >> 1));
  }
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

// Rounds x [count] into y [count], which may be x. The first `slices` slices are accessed in packs and require aligned
// pointers; the remaining elements are processed one by one. `seed`: one number in device memory, for stochastic
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

template <typename T, typename Rounder>
void launch_rounder(const DeviceElements& a, const Rounder& rounder, Stream stream) {
  if (a.count == 0) return;
  const bool aligned = is_pack_aligned(a.x) && is_pack_aligned(a.y);
  const int64_t slices = aligned ? a.count / philox_block * slices_per_block<T> : 0;
  const int64_t rest = a.count - slices / slices_per_block<T> * philox_block;
  launch(
      round_elements_kernel<T, Rounder>,
      blocks_for(slices > rest ? slices : rest, round_elements_threads),
      round_elements_threads,
      0,
      stream,
      static_cast<const T*>(a.x),
      static_cast<T*>(a.y),
      slices,
      a.count,
      rounder,
      a.seed);
}

template <Rounding rule, typename Layout>
FloatRounder<Layout, rule> rounder_of(const FloatFormat<Layout>& format) {
  return {format};
}
template <Rounding rule, typename C>
FixedRounder<C, rule> rounder_of(const FixedFormat<C>& format) {
  return {format};
}

// R: FloatRounding or FixedPointRounding.
template <typename R>
void launch_round_elements(const DeviceElements& a, const R& rounding, Stream stream) {
  with_rule(rounding.rounding, [&](auto rule) {
    const auto rounder = rounder_of<rule>(rounding.format32);
    switch (a.type) {
      case Type::float32:
        return launch_rounder<float>(a, rounder, stream);
      case Type::bfloat16:
        return launch_rounder<BFloat16>(a, rounder, stream);
      case Type::float16:
        return launch_rounder<Half>(a, rounder, stream);
      case Type::float64:
        return launch_rounder<double>(a, rounder_of<rule>(rounding.format64), stream);
    }
  });
}

}  // namespace vitfast
