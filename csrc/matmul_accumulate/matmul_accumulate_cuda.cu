#include "csrc/cuda/current_stream.cuh"
#include "csrc/matmul_accumulate/matmul_accumulate_launch.cuh"
#include "csrc/matmul_accumulate/matmul_accumulate_tensors.h"

namespace vitfast {
namespace {

struct Cuda {
  static Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& sizes) {
    return torch::stable::new_empty(like, {sizes.data(), sizes.size()});
  }

  static void run(const MatmulAccumulate& a, const Tensor& like) { launch_matmul_accumulate(a, CurrentStream(like)); }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CUDA, m) {
  m.impl("matmul_accumulate", TORCH_BOX(&matmul_accumulate<Cuda>));
}

}  // namespace vitfast
