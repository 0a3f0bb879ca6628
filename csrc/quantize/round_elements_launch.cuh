// From the arguments of quantize_float and quantize_fixed to the instance of the kernel.

#pragma once

#include "csrc/common/types.h"
#include "csrc/cuda/launch.cuh"
#include "csrc/quantize/round_elements_kernel.cuh"

namespace vitfast {

// x [count] -> y [count], both contiguous, perhaps the same. `seed`: one number on the device, or null.
struct DeviceElements {
  Type type;
  const void* x;
  void* y;
  int64_t count;
  const int64_t* seed;
};

template <typename T, typename Rounder>
void launch_round_elements(const DeviceElements& a, const Rounder& rounder, Stream stream) {
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

// The stored type decides the type that is rounded in: `rounder32` or `rounder64`.
template <typename Rounder32, typename Rounder64>
void launch_for_type(const DeviceElements& a, const Rounder32& rounder32, const Rounder64& rounder64, Stream stream) {
  switch (a.type) {
    case Type::float32:
      return launch_round_elements<float>(a, rounder32, stream);
    case Type::bfloat16:
      return launch_round_elements<BFloat16>(a, rounder32, stream);
    case Type::float16:
      return launch_round_elements<Half>(a, rounder32, stream);
    case Type::float64:
      return launch_round_elements<double>(a, rounder64, stream);
  }
}

inline void launch_quantize_float(const DeviceElements& a, const FloatRounding& rounding, Stream stream) {
  with_rule(rounding.rounding, [&](auto rule) {
    launch_for_type(
        a,
        FloatRounder<Float32Bits, rule>{rounding.format32},
        FloatRounder<Float64Bits, rule>{rounding.format64},
        stream);
  });
}

inline void launch_quantize_fixed(const DeviceElements& a, const FixedPointRounding& rounding, Stream stream) {
  with_rule(rounding.rounding, [&](auto rule) {
    launch_for_type(
        a, FixedRounder<float, rule>{rounding.format32}, FixedRounder<double, rule>{rounding.format64}, stream);
  });
}

}  // namespace vitfast
