#include "csrc/products/products_cuda.h"

namespace vitfast {
namespace {

struct Cuda {
  static std::optional<Tensor> product(const LinearCall& call) { return product_on_cuda(call); }
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
