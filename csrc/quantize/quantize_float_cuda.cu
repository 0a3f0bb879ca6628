#include <torch/headeronly/core/ScalarType.h>

#include "csrc/cuda/current_stream.cuh"
#include "csrc/quantize/quantize_float.h"
#include "csrc/quantize/quantize_float_launch.cuh"

namespace vitfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename T, typename Layout>
void quantize_typed(const Tensor& x, const Tensor& y, const QuantizeFloatArguments& a, const int64_t* seed) {
  launch_quantize_float<T, Layout>(
      x.const_data_ptr(),
      y.mutable_data_ptr(),
      x.numel(),
      a.checked_format<Layout>(),
      a.checked_rounding(),
      seed,
      CurrentStream(x));
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
        return quantize_typed<float, Float32Bits>(x, y, a, seed);
      case ScalarType::BFloat16:
        return quantize_typed<BFloat16, Float32Bits>(x, y, a, seed);
      case ScalarType::Half:
        return quantize_typed<Half, Float32Bits>(x, y, a, seed);
      case ScalarType::Double:
        return quantize_typed<double, Float64Bits>(x, y, a, seed);
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
