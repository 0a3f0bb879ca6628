// On the CPU linear is torch's operators: its library (MKL or oneDNN) holds about 80 % of peak at ViT shapes. What is
// ours there has packed weights: csrc/packed.

#include "csrc/linear/linear_tensors.h"

namespace vitfast {
namespace {

struct Cpu {
  static std::optional<Tensor> gemm(const LinearCall&) { return std::nullopt; }
  static std::optional<EpilogueGradients> gradients(const EpilogueGradientCall&) { return std::nullopt; }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CPU, m) {
  m.impl("linear_forward", TORCH_BOX(&linear_forward<Cpu>));
  m.impl("linear_backward", TORCH_BOX(&linear_backward<Cpu>));
}

}  // namespace vitfast
