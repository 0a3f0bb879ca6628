// The checks of tensors that are rounded on the device.

#pragma once

#include "csrc/common/tensors.h"
#include "csrc/cuda/current_stream.cuh"
#include "csrc/quantize/round_elements_launch.cuh"

namespace vitfast {

inline DeviceElements device_elements(
    const char* op, const Tensor& x, const Tensor& y, const std::optional<Tensor>& seed, bool needs_seed) {
  STD_TORCH_CHECK(x.is_cuda(), op, ": x must be on a CUDA device");
  STD_TORCH_CHECK(seed.has_value() || !needs_seed, op, ": stochastic rounding needs a seed");
  const int64_t* seed_on_device = nullptr;
  if (seed.has_value()) {
    STD_TORCH_CHECK(
        seed->is_cuda() && seed->get_device_index() == x.get_device_index() &&
            seed->scalar_type() == ScalarType::Long && seed->numel() == 1,
        op,
        ": seed must be one int64 on x's device");
    seed_on_device = static_cast<const int64_t*>(seed->const_data_ptr());
  }
  return {type_of(x), x.const_data_ptr(), y.mutable_data_ptr(), x.numel(), seed_on_device};
}

}  // namespace vitfast
