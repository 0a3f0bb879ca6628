// The seed of stochastic rounding on the CPU.

#pragma once

#include "csrc/common/tensors.h"

namespace vitfast {

// The seed's value; 0 where there is none and none is needed.
inline uint64_t read_seed(const char* op, const std::optional<Tensor>& seed, bool is_needed) {
  STD_TORCH_CHECK(seed.has_value() || !is_needed, op, ": stochastic rounding needs a seed");
  if (!seed.has_value()) return 0;
  STD_TORCH_CHECK(
      seed->is_cpu() && seed->scalar_type() == ScalarType::Long && seed->numel() == 1,
      op,
      ": seed must be one int64 on the CPU");
  return static_cast<uint64_t>(*static_cast<const int64_t*>(seed->const_data_ptr()));
}

}  // namespace vitfast
