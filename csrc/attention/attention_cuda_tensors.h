// What the attention operators on CUDA share: the tensors that their kernels read and write.

#pragma once

#include "csrc/common/tensors.h"
#include "csrc/cuda/pack.cuh"

namespace vitfast {

struct AttentionCudaTensors {
  // Rows are read 16 bytes at a time.
  static Tensor rows(const Tensor& tensor) {
    const int64_t elements = 16 / element_size(tensor);
    bool readable = tensor.stride(-1) == 1 && is_pack_aligned(tensor.const_data_ptr());
    for (int64_t i = 0; i + 1 < tensor.dim(); ++i) readable = readable && tensor.stride(i) % elements == 0;
    return readable ? tensor : torch::stable::clone(torch::stable::contiguous(tensor));
  }

  static Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type) {
    return torch::stable::new_empty(like, {sizes.data(), sizes.size()}, type);
  }
};

}  // namespace vitfast
