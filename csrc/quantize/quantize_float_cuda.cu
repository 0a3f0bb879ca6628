// Checks and launch of quantize_float on CUDA.

#include <torch/headeronly/core/ScalarType.h>

#include "csrc/cuda/launch.cuh"
#include "csrc/quantize/quantize_float.h"
#include "csrc/quantize/quantize_float_kernel.cuh"

namespace vitfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int threads_per_block = 256;

template <typename T, typename Layout, Rounding rounding>
void launch(const Tensor& x, const Tensor& y, const FloatFormat<Layout>& format, const int64_t* seed) {
  const int64_t count = x.numel();
  if (count == 0) return;
  const T* source = static_cast<const T*>(x.const_data_ptr());
  T* target = static_cast<T*>(y.mutable_data_ptr());
  const bool aligned = is_pack_aligned(source) && is_pack_aligned(target);
  const int64_t slices = aligned ? count / philox_block * slices_per_block<T> : 0;
  const int64_t rest = count - slices / slices_per_block<T> * philox_block;
  const CudaLaunch on(x);
  const unsigned blocks = on.blocks(slices > rest ? slices : rest, threads_per_block);
  quantize_float_kernel<T, Layout, rounding>
      <<<blocks, threads_per_block, 0, on.stream()>>>(source, target, slices, count, format, seed);
  CudaLaunch::check();
}

template <typename T, typename Layout>
void launch_rounding(const Tensor& x, const Tensor& y, const QuantizeFloatArguments& a, const int64_t* seed) {
  const auto format = a.checked_format<Layout>();
  switch (a.checked_rounding()) {
    case Rounding::nearest_even:
      return launch<T, Layout, Rounding::nearest_even>(x, y, format, seed);
    case Rounding::nearest_away:
      return launch<T, Layout, Rounding::nearest_away>(x, y, format, seed);
    case Rounding::toward_zero:
      return launch<T, Layout, Rounding::toward_zero>(x, y, format, seed);
    case Rounding::stochastic:
      return launch<T, Layout, Rounding::stochastic>(x, y, format, seed);
  }
}

struct Cuda {
  static Tensor empty_like(const Tensor& x) { return torch::stable::new_empty(x, x.sizes()); }

  static void quantize(const Tensor& x, const Tensor& y, const QuantizeFloatArguments& a) {
    STD_TORCH_CHECK(x.is_cuda(), "quantize_float: x must be on a CUDA device");
    const int64_t* seed = nullptr;
    if (a.seed.has_value()) {
      STD_TORCH_CHECK(
          a.seed->is_cuda() && a.seed->get_device_index() == x.get_device_index() &&
              a.seed->scalar_type() == ScalarType::Long && a.seed->numel() == 1,
          "quantize_float: seed must be one int64 on x's device");
      seed = static_cast<const int64_t*>(a.seed->const_data_ptr());
    }
    switch (x.scalar_type()) {
      case ScalarType::Float:
        return launch_rounding<float, Float32Bits>(x, y, a, seed);
      case ScalarType::BFloat16:
        return launch_rounding<__nv_bfloat16, Float32Bits>(x, y, a, seed);
      case ScalarType::Half:
        return launch_rounding<__half, Float32Bits>(x, y, a, seed);
      case ScalarType::Double:
        return launch_rounding<double, Float64Bits>(x, y, a, seed);
      default:
        STD_TORCH_CHECK(false, "quantize_float: x must be float32, bfloat16, float16 or float64");
    }
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CUDA, m) {
  m.impl("quantize_float", TORCH_BOX(&quantize_float<Cuda>));
  m.impl("quantize_float_", TORCH_BOX(&quantize_float_<Cuda>));
}

}  // namespace vitfast
