#include "csrc/cpu/tensors.h"
#include "csrc/quantize/float_rounding.h"
#include "csrc/quantize/rounded_copy.h"
#include "csrc/quantize/seed_cpu.h"

namespace vitfast {
namespace {

void round_elements(
    const Tensor& x, const Tensor& y, const std::vector<int64_t>& rounding, const std::optional<Tensor>& seed) {
  const FloatRounding read = read_float_rounding("quantize_float", rounding);
  const QuantizeFloat arguments{
      {type_of(x),
       x.const_data_ptr(),
       y.mutable_data_ptr(),
       read_seed("quantize_float", seed, read.rounding == Rounding::stochastic),
       exceeds_caches(x)},
      read};
  parallel(x.numel(), 1, [&](int64_t begin, int64_t end) { cpu_kernels().quantize_float(arguments, begin, end); });
}

Tensor quantize_float(const Tensor& x, std::vector<int64_t> rounding, const std::optional<Tensor>& seed) {
  check_tensor("quantize_float", "x", x);
  return rounded_copy(x, new_tensor(x, sizes_of(x)), [&](const Tensor& source, const Tensor& target) {
    round_elements(source, target, rounding, seed);
  });
}

void quantize_float_(Tensor x, std::vector<int64_t> rounding, const std::optional<Tensor>& seed) {
  check_tensor("quantize_float", "x", x);
  round_in_place(
      x, [&](const Tensor& source, const Tensor& target) { round_elements(source, target, rounding, seed); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CPU, m) {
  m.impl("quantize_float", TORCH_BOX(&quantize_float));
  m.impl("quantize_float_", TORCH_BOX(&quantize_float_));
}

}  // namespace vitfast
