#include "csrc/quantize/device_elements.cuh"
#include "csrc/quantize/float_rounding.h"
#include "csrc/quantize/rounded_copy.h"

namespace vitfast {
namespace {

void round_elements(
    const Tensor& x, const Tensor& y, const std::vector<int64_t>& rounding, const std::optional<Tensor>& seed) {
  const FloatRounding read = read_float_rounding("quantize_float", rounding);
  const bool needs_seed = read.rounding == Rounding::stochastic;
  const DeviceElements elements = device_elements("quantize_float", x, y, seed, needs_seed);
  launch_quantize_float(elements, read, CurrentStream(x));
}

Tensor quantize_float(const Tensor& x, std::vector<int64_t> rounding, const std::optional<Tensor>& seed) {
  check_tensor("quantize_float", "x", x);
  return rounded_copy(x, torch::stable::new_empty(x, x.sizes()), [&](const Tensor& source, const Tensor& target) {
    round_elements(source, target, rounding, seed);
  });
}

void quantize_float_(Tensor x, std::vector<int64_t> rounding, const std::optional<Tensor>& seed) {
  check_tensor("quantize_float", "x", x);
  round_in_place(
      x, [&](const Tensor& source, const Tensor& target) { round_elements(source, target, rounding, seed); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CUDA, m) {
  m.impl("quantize_float", TORCH_BOX(&quantize_float));
  m.impl("quantize_float_", TORCH_BOX(&quantize_float_));
}

}  // namespace vitfast
