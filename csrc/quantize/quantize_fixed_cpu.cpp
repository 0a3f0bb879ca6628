#include "csrc/cpu/tensors.h"
#include "csrc/quantize/fixed_rounding.h"
#include "csrc/quantize/rounded_copy.h"
#include "csrc/quantize/seed_cpu.h"

namespace vitfast {
namespace {

void round_elements(
    const Tensor& x, const Tensor& y, const std::vector<int64_t>& rounding, const std::optional<Tensor>& seed) {
  const FixedPointRounding read = read_fixed_rounding("quantize_fixed", rounding);
  const QuantizeFixed arguments{
      {type_of(x),
       x.const_data_ptr(),
       y.mutable_data_ptr(),
       read_seed("quantize_fixed", seed, read.rounding == FixedRounding::stochastic),
       exceeds_caches(x)},
      read};
  parallel(x.numel(), 1, [&](int64_t begin, int64_t end) { cpu_kernels().quantize_fixed(arguments, begin, end); });
}

Tensor quantize_fixed(const Tensor& x, std::vector<int64_t> rounding, const std::optional<Tensor>& seed) {
  check_tensor("quantize_fixed", "x", x);
  return rounded_copy(x, new_tensor(x, sizes_of(x)), [&](const Tensor& source, const Tensor& target) {
    round_elements(source, target, rounding, seed);
  });
}

void quantize_fixed_(Tensor x, std::vector<int64_t> rounding, const std::optional<Tensor>& seed) {
  check_tensor("quantize_fixed", "x", x);
  round_in_place(
      x, [&](const Tensor& source, const Tensor& target) { round_elements(source, target, rounding, seed); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CPU, m) {
  m.impl("quantize_fixed", TORCH_BOX(&quantize_fixed));
  m.impl("quantize_fixed_", TORCH_BOX(&quantize_fixed_));
}

}  // namespace vitfast
