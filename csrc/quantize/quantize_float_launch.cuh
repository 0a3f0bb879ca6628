// From the arguments of quantize_float to the instance of its kernel.

#pragma once

#include "csrc/common/types.h"
#include "csrc/cuda/launch.cuh"
#include "csrc/quantize/quantize_float_kernel.cuh"

namespace vitfast {

template <typename T, typename Layout, Rounding rounding>
void launch_quantize_float_instance(
    const void* x, void* y, int64_t count, const FloatFormat<Layout>& format, const int64_t* seed, Stream stream) {
  const bool aligned = is_pack_aligned(x) && is_pack_aligned(y);
  const int64_t slices = aligned ? count / philox_block * slices_per_block<T> : 0;
  const int64_t rest = count - slices / slices_per_block<T> * philox_block;
  launch(
      quantize_float_kernel<T, Layout, rounding>,
      blocks_for(slices > rest ? slices : rest, quantize_float_threads),
      quantize_float_threads,
      0,
      stream,
      static_cast<const T*>(x),
      static_cast<T*>(y),
      slices,
      count,
      format,
      seed);
}

// Rounds the contiguous x [count] of type T into y, which may be x itself. `seed`: one number on the device, or null.
template <typename T, typename Layout>
void launch_quantize_float(
    const void* x,
    void* y,
    int64_t count,
    const FloatFormat<Layout>& format,
    Rounding rounding,
    const int64_t* seed,
    Stream stream) {
  if (count == 0) return;
  switch (rounding) {
    case Rounding::nearest_even:
      return launch_quantize_float_instance<T, Layout, Rounding::nearest_even>(x, y, count, format, seed, stream);
    case Rounding::nearest_away:
      return launch_quantize_float_instance<T, Layout, Rounding::nearest_away>(x, y, count, format, seed, stream);
    case Rounding::toward_zero:
      return launch_quantize_float_instance<T, Layout, Rounding::toward_zero>(x, y, count, format, seed, stream);
    case Rounding::stochastic:
      return launch_quantize_float_instance<T, Layout, Rounding::stochastic>(x, y, count, format, seed, stream);
  }
}

}  // namespace vitfast
