#include "csrc/linear/gemm_cuda.h"

namespace vitfast {
namespace {

struct Cuda {
  static std::optional<Tensor> gemm(const LinearCall& call) { return gemm_on_cuda(call); }
  static std::optional<EpilogueGradients> gradients(const EpilogueGradientCall& call) {
    return epilogue_gradients_on_cuda(call);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CUDA, m) {
  m.impl("linear_forward", TORCH_BOX(&linear_forward<Cuda>));
  m.impl("linear_backward", TORCH_BOX(&linear_backward<Cuda>));
}

}  // namespace vitfast
