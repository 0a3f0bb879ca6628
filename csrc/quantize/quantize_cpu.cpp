#include "csrc/cpu/tensors.h"
#include "csrc/quantize/quantize_tensors.h"

namespace vitfast {
namespace {

struct Cpu {
  template <typename R>
  static void round(const R& rounding, const QuantizeCall& call) {
    constexpr int64_t cache_bytes = int64_t(8) << 20;
    const Quantize<R> arguments{
        type_of(call.x),
        call.x.const_data_ptr(),
        call.y.mutable_data_ptr(),
        rounding,
        call.seed == nullptr ? 0 : uint64_t(*call.seed),
        call.x.numel() * int64_t(call.x.element_size()) >= cache_bytes};
    if constexpr (std::is_same_v<R, FloatRounding>) {
      parallel(call.x.numel(), 1, cpu_kernels().quantize_float, arguments);
    } else {
      parallel(call.x.numel(), 1, cpu_kernels().quantize_fixed, arguments);
    }
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CPU, m) {
  m.impl("quantize_float", CHECKED_BOX((&quantize<Cpu, FloatOperator>)));
  m.impl("quantize_float_", CHECKED_BOX((&quantize_in_place<Cpu, FloatOperator>)));
  m.impl("quantize_fixed", CHECKED_BOX((&quantize<Cpu, FixedOperator>)));
  m.impl("quantize_fixed_", CHECKED_BOX((&quantize_in_place<Cpu, FixedOperator>)));
}

}  // namespace vitfast
