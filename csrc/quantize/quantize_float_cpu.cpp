#include "csrc/cpu/tensors.h"
#include "csrc/quantize/quantize_float.h"

namespace vitfast {
namespace {

struct Cpu {
  static Tensor empty_like(const Tensor& x) {
    check_tensor("quantize_float", "x", x);
    return new_tensor(x, sizes_of(x));
  }

  static void quantize(const Tensor& x, const Tensor& y, const QuantizeFloatArguments& a) {
    check_tensor("quantize_float", "x", x);
    uint64_t seed = 0;
    if (a.seed.has_value()) {
      STD_TORCH_CHECK(
          a.seed->is_cpu() && a.seed->scalar_type() == ScalarType::Long && a.seed->numel() == 1,
          "quantize_float: seed must be one int64 on the CPU");
      seed = static_cast<uint64_t>(*static_cast<const int64_t*>(a.seed->const_data_ptr()));
    }
    const QuantizeFloat arguments{
        type_of(x),
        x.const_data_ptr(),
        y.mutable_data_ptr(),
        a.checked_rounding(),
        a.checked_format<Float32Bits>(),
        a.checked_format<Float64Bits>(),
        seed};
    parallel(x.numel(), 1, [&](int64_t begin, int64_t end) { cpu_kernels().quantize_float(arguments, begin, end); });
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CPU, m) {
  m.impl("quantize_float", TORCH_BOX(&quantize_float<Cpu>));
  m.impl("quantize_float_", TORCH_BOX(&quantize_float_<Cpu>));
}

}  // namespace vitfast
