#include "csrc/cpu/tensors.h"
#include "csrc/quantize/quantize_float.h"

namespace vitfast {
namespace {

// Rounds the contiguous x into the contiguous y, which may be x itself.
void quantize_into(
    const Tensor& x,
    const Tensor& y,
    int64_t exponent_bits,
    int64_t mantissa_bits,
    double max_value,
    bool has_inf,
    bool has_nan,
    bool signed_zero,
    int64_t overflow,
    int64_t rounding,
    const std::optional<Tensor>& seed) {
  uint64_t seed_value = 0;
  if (seed.has_value()) {
    STD_TORCH_CHECK(
        seed->is_cpu() && seed->scalar_type() == ScalarType::Long && seed->numel() == 1,
        "quantize_float: seed must be one int64 on the CPU");
    seed_value = static_cast<uint64_t>(*static_cast<const int64_t*>(seed->const_data_ptr()));
  }
  const QuantizeFloat arguments{
      type_of(x),
      x.const_data_ptr(),
      y.mutable_data_ptr(),
      rounding_from_argument(rounding, seed.has_value()),
      float_format_from_arguments<Float32Bits>(
          exponent_bits, mantissa_bits, max_value, has_inf, has_nan, signed_zero, overflow),
      float_format_from_arguments<Float64Bits>(
          exponent_bits, mantissa_bits, max_value, has_inf, has_nan, signed_zero, overflow),
      seed_value};
  parallel(x.numel(), 1, [&](int64_t begin, int64_t end) { cpu_kernels().quantize_float(arguments, begin, end); });
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
  check_tensor("quantize_float", "x", x);
  const Tensor y = new_tensor(x, sizes_of(x));
  quantize_into(
      as_contiguous(x),
      y,
      exponent_bits,
      mantissa_bits,
      max_value,
      has_inf,
      has_nan,
      signed_zero,
      overflow,
      rounding,
      seed);
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
  check_tensor("quantize_float_", "x", x);
  const Tensor rows = as_contiguous(x);
  quantize_into(
      rows, rows, exponent_bits, mantissa_bits, max_value, has_inf, has_nan, signed_zero, overflow, rounding, seed);
  if (!x.is_contiguous()) torch::stable::copy_(x, rows);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CPU, m) {
  m.impl("quantize_float", TORCH_BOX(&quantize_float));
  m.impl("quantize_float_", TORCH_BOX(&quantize_float_));
}

}  // namespace vitfast
