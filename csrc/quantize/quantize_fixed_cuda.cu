#include "csrc/quantize/device_elements.cuh"
#include "csrc/quantize/fixed_rounding.h"
#include "csrc/quantize/rounded_copy.h"

namespace vitfast {
namespace {

void round_elements(
    const Tensor& x, const Tensor& y, const std::vector<int64_t>& rounding, const std::optional<Tensor>& seed) {
  const FixedPointRounding read = read_fixed_rounding("quantize_fixed", rounding);
  const bool needs_seed = read.rounding == FixedRounding::stochastic;
  const DeviceElements elements = device_elements("quantize_fixed", x, y, seed, needs_seed);
  launch_quantize_fixed(elements, read, CurrentStream(x));
}

Tensor quantize_fixed(const Tensor& x, std::vector<int64_t> rounding, const std::optional<Tensor>& seed) {
  check_tensor("quantize_fixed", "x", x);
  return rounded_copy(x, torch::stable::new_empty(x, x.sizes()), [&](const Tensor& source, const Tensor& target) {
    round_elements(source, target, rounding, seed);
  });
}

void quantize_fixed_(Tensor x, std::vector<int64_t> rounding, const std::optional<Tensor>& seed) {
  check_tensor("quantize_fixed", "x", x);
  round_in_place(
      x, [&](const Tensor& source, const Tensor& target) { round_elements(source, target, rounding, seed); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CUDA, m) {
  m.impl("quantize_fixed", TORCH_BOX(&quantize_fixed));
  m.impl("quantize_fixed_", TORCH_BOX(&quantize_fixed_));
}

}  // namespace vitfast
