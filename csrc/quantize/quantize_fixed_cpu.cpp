#include "csrc/cpu/tensors.h"
#include "csrc/quantize/fixed_rounding.h"
#include "csrc/quantize/rounded_copy.h"
#include "csrc/quantize/seed_cpu.h"

namespace vitfast {
namespace {

struct Cpu {
  static constexpr const char* name = "quantize_fixed";

  static Tensor empty_like(const Tensor& x) { return new_tensor(x, sizes_of(x)); }

  static void round(
      const Tensor& x, const Tensor& y, const std::vector<int64_t>& rounding, const std::optional<Tensor>& seed) {
    const FixedPointRounding read = read_fixed_rounding(name, rounding);
    const QuantizeFixed arguments{
        {type_of(x),
         x.const_data_ptr(),
         y.mutable_data_ptr(),
         read_seed(name, seed, read.rounding == Rounding::stochastic),
         exceeds_caches(x)},
        read};
    parallel(x.numel(), 1, [&](int64_t begin, int64_t end) { cpu_kernels().quantize_fixed(arguments, begin, end); });
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CPU, m) {
  m.impl("quantize_fixed", TORCH_BOX(&rounded_copy<Cpu>));
  m.impl("quantize_fixed_", TORCH_BOX(&round_in_place<Cpu>));
}

}  // namespace vitfast
