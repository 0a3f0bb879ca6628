// On the CPU linear calls torch operators: MKL or oneDNN reach about 80 % of peak at ViT shapes. The custom CPU GEMMs,
// which require packed weights, are in csrc/packed.

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
