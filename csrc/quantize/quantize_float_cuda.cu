// Checks and launch of quantize_float on CUDA.

#include <optional>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "csrc/cuda/launch.cuh"
#include "csrc/quantize/quantize_float.h"
#include "csrc/quantize/quantize_float_kernel.cuh"

namespace vitfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int threads_per_block = 256;

// The raw operator's arguments behind x.
struct Arguments {
  int64_t exponent_bits;
  int64_t mantissa_bits;
  double max_value;
  bool has_inf;
  bool has_nan;
  bool signed_zero;
  int64_t overflow;
  Rounding rounding;
  const int64_t* seed;  // on x's device, or null
};

template <typename T, typename Layout, Rounding rounding>
void launch(const Tensor& x, const Tensor& y, const Arguments& a) {
  const auto format = float_format_from_arguments<Layout>(
      a.exponent_bits, a.mantissa_bits, a.max_value, a.has_inf, a.has_nan, a.signed_zero, a.overflow);
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
      <<<blocks, threads_per_block, 0, on.stream()>>>(source, target, slices, count, format, a.seed);
  CudaLaunch::check();
}

template <typename T, typename Layout>
void launch_rounding(const Tensor& x, const Tensor& y, const Arguments& a) {
  switch (a.rounding) {
    case Rounding::nearest_even:
      return launch<T, Layout, Rounding::nearest_even>(x, y, a);
    case Rounding::nearest_away:
      return launch<T, Layout, Rounding::nearest_away>(x, y, a);
    case Rounding::toward_zero:
      return launch<T, Layout, Rounding::toward_zero>(x, y, a);
    case Rounding::stochastic:
      return launch<T, Layout, Rounding::stochastic>(x, y, a);
  }
}

// Rounds the contiguous x into the contiguous y, which may be x itself.
void quantize_into(const Tensor& x, const Tensor& y, const Arguments& a) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return launch_rounding<float, Float32Bits>(x, y, a);
    case ScalarType::BFloat16:
      return launch_rounding<__nv_bfloat16, Float32Bits>(x, y, a);
    case ScalarType::Half:
      return launch_rounding<__half, Float32Bits>(x, y, a);
    case ScalarType::Double:
      return launch_rounding<double, Float64Bits>(x, y, a);
    default:
      STD_TORCH_CHECK(false, "quantize_float: x must be float32, bfloat16, float16 or float64");
  }
}

const int64_t* seed_pointer(const Tensor& x, const std::optional<Tensor>& seed) {
  STD_TORCH_CHECK(x.is_cuda(), "quantize_float: x must be on a CUDA device");
  if (!seed.has_value()) return nullptr;
  STD_TORCH_CHECK(
      seed->is_cuda() && seed->get_device_index() == x.get_device_index() && seed->scalar_type() == ScalarType::Long &&
          seed->numel() == 1,
      "quantize_float: seed must be one int64 on x's device");
  return static_cast<const int64_t*>(seed->const_data_ptr());
}

Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

Tensor quantize_float(
    const Tensor& x,
    int64_t exponent_bits,
    int64_t mantissa_bits,
    double max_value,
    bool has_inf,
    bool has_nan,
    bool signed_zero,
    int64_t overflow,
    int64_t rounding,
    const std::optional<Tensor>& seed) {
  const Arguments arguments{
      exponent_bits,
      mantissa_bits,
      max_value,
      has_inf,
      has_nan,
      signed_zero,
      overflow,
      rounding_from_argument(rounding, seed.has_value()),
      seed_pointer(x, seed)};
  const Tensor y = torch::stable::new_empty(x, x.sizes());
  quantize_into(as_contiguous(x), y, arguments);
  return y;
}

void quantize_float_(
    Tensor x,
    int64_t exponent_bits,
    int64_t mantissa_bits,
    double max_value,
    bool has_inf,
    bool has_nan,
    bool signed_zero,
    int64_t overflow,
    int64_t rounding,
    const std::optional<Tensor>& seed) {
  const Arguments arguments{
      exponent_bits,
      mantissa_bits,
      max_value,
      has_inf,
      has_nan,
      signed_zero,
      overflow,
      rounding_from_argument(rounding, seed.has_value()),
      seed_pointer(x, seed)};
  const Tensor rows = as_contiguous(x);
  quantize_into(rows, rows, arguments);
  if (!x.is_contiguous()) torch::stable::copy_(x, rows);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CUDA, m) {
  m.impl("quantize_float", TORCH_BOX(&quantize_float));
  m.impl("quantize_float_", TORCH_BOX(&quantize_float_));
}

}  // namespace vitfast
