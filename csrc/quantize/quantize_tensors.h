// quantize_float and quantize_fixed on tensors: checks, allocation, and the in-place forms. A Device provides
//
//     static void round(const FloatRounding&, const QuantizeCall&);        // x and y are contiguous and may be equal
//     static void round(const FixedPointRounding&, const QuantizeCall&);

#pragma once

#include "csrc/common/tensors.h"
#include "csrc/quantize/rounding_arguments.h"

namespace vitfast {

struct QuantizeCall {
  const Tensor& x;
  const Tensor& y;
  const int64_t* seed;  // one number in the memory of the device, or null
};

struct FloatOperator {
  static constexpr const char* name = "quantize_float";
  static constexpr auto read = read_float_rounding;
};

struct FixedOperator {
  static constexpr const char* name = "quantize_fixed";
  static constexpr auto read = read_fixed_rounding;
};

template <typename Device, typename Operator>
void quantize_into(
    const Tensor& x, const Tensor& y, const std::vector<int64_t>& rounding, const std::optional<Tensor>& seed) {
  const char* op = Operator::name;
  const auto format = Operator::read(op, rounding);
  STD_TORCH_CHECK(
      seed.has_value() || format.rounding != Rounding::stochastic, op, ": stochastic rounding needs a seed");
  const int64_t* seed_data = nullptr;
  if (seed.has_value()) {
    STD_TORCH_CHECK(
        seed->scalar_type() == ScalarType::Long && seed->numel() == 1 && is_on_device_of(*seed, x),
        op,
        ": seed must be one int64 on the device of x");
    seed_data = static_cast<const int64_t*>(seed->const_data_ptr());
  }
  Device::round(format, {x, y, seed_data});
}

template <typename Device, typename Operator>
Tensor quantize(const Tensor& x, std::vector<int64_t> rounding, const std::optional<Tensor>& seed) {
  check_tensor(Operator::name, "x", x);
  const Tensor y = new_tensor(x, sizes_of(x));
  quantize_into<Device, Operator>(as_contiguous(x), y, rounding, seed);
  return y;
}

template <typename Device, typename Operator>
void quantize_in_place(Tensor x, std::vector<int64_t> rounding, const std::optional<Tensor>& seed) {
  check_tensor(Operator::name, "x", x);
  const Tensor rows = as_contiguous(x);
  quantize_into<Device, Operator>(rows, rows, rounding, seed);
  if (!x.is_contiguous()) torch::stable::copy_(x, rows);
}

}  // namespace vitfast
