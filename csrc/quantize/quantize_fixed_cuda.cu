#include "csrc/quantize/device_elements.cuh"
#include "csrc/quantize/fixed_rounding.h"
#include "csrc/quantize/rounded_copy.h"

namespace vitfast {
namespace {

struct Cuda {
  static constexpr const char* name = "quantize_fixed";

  static Tensor empty_like(const Tensor& x) { return torch::stable::new_empty(x, x.sizes()); }

  static void round(
      const Tensor& x, const Tensor& y, const std::vector<int64_t>& rounding, const std::optional<Tensor>& seed) {
    const FixedPointRounding read = read_fixed_rounding(name, rounding);
    const bool needs_seed = read.rounding == Rounding::stochastic;
    launch_quantize_fixed(device_elements(name, x, y, seed, needs_seed), read, CurrentStream(x));
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CUDA, m) {
  m.impl("quantize_fixed", TORCH_BOX(&rounded_copy<Cuda>));
  m.impl("quantize_fixed_", TORCH_BOX(&round_in_place<Cuda>));
}

}  // namespace vitfast
