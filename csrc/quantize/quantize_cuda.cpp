#include "csrc/cuda/tensors.h"
#include "csrc/quantize/quantize_tensors.h"

namespace vitfast {
namespace {

struct Cuda {
  template <typename Format>
  static void round(const Format& rounding, const QuantizeCall& call) {
    launch_round_elements(
        {type_of(call.x), call.x.const_data_ptr(), call.y.mutable_data_ptr(), call.x.numel(), call.seed},
        rounding,
        CurrentStream(call.x));
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CUDA, m) {
  m.impl("quantize_float", TORCH_BOX((&quantize<Cuda, FloatOperator>)));
  m.impl("quantize_float_", TORCH_BOX((&quantize_in_place<Cuda, FloatOperator>)));
  m.impl("quantize_fixed", TORCH_BOX((&quantize<Cuda, FixedOperator>)));
  m.impl("quantize_fixed_", TORCH_BOX((&quantize_in_place<Cuda, FixedOperator>)));
}

}  // namespace vitfast
