// On the CPU linear calls torch operators: MKL or oneDNN reach about 80 % of peak at ViT shapes. The custom CPU GEMMs,
// which require packed weights, are in csrc/packed.

#include "csrc/cpu/checked.h"
#include "csrc/linear/linear_tensors.h"

namespace vitfast {
namespace {

std::optional<LinearResult> no_gemm(const LinearCall&, bool) {
  return std::nullopt;
}

std::optional<EpilogueGradients> no_gradients(const EpilogueGradientCall&) {
  return std::nullopt;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CPU, m) {
  m.impl("linear_forward", CHECKED_BOX(&linear_forward<no_gemm>));
  m.impl("linear_backward", CHECKED_BOX(&linear_backward<no_gradients>));
}

}  // namespace vitfast
