#include "csrc/cpu/tensors.h"
#include "csrc/quantize/quantize_tensors.h"

namespace vitfast {
namespace {

struct Cpu {
  static Elements elements(const QuantizeCall& call) {
    const uint64_t seed = call.seed == nullptr ? 0 : static_cast<uint64_t>(*call.seed);
    return {type_of(call.x), call.x.const_data_ptr(), call.y.mutable_data_ptr(), seed, exceeds_caches(call.x)};
  }

  static void round(const FloatRounding& rounding, const QuantizeCall& call) {
    const QuantizeFloat arguments{elements(call), rounding};
    parallel(
        call.x.numel(), 1, [&](int64_t begin, int64_t end) { cpu_kernels().quantize_float(arguments, begin, end); });
  }

  static void round(const FixedPointRounding& rounding, const QuantizeCall& call) {
    const QuantizeFixed arguments{elements(call), rounding};
    parallel(
        call.x.numel(), 1, [&](int64_t begin, int64_t end) { cpu_kernels().quantize_fixed(arguments, begin, end); });
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CPU, m) {
  m.impl("quantize_float", TORCH_BOX((&quantize<Cpu, FloatOperator>)));
  m.impl("quantize_float_", TORCH_BOX((&quantize_in_place<Cpu, FloatOperator>)));
  m.impl("quantize_fixed", TORCH_BOX((&quantize<Cpu, FixedOperator>)));
  m.impl("quantize_fixed_", TORCH_BOX((&quantize_in_place<Cpu, FixedOperator>)));
}

}  // namespace vitfast
