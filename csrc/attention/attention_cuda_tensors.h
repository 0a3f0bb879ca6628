// What the attention operators on CUDA share: the tensors that their kernels read and write.

#pragma once

#include "csrc/common/tensors.h"
#include "csrc/cuda/pack.cuh"

namespace vitfast {

struct AttentionCudaTensors {
  // Rows are read 16 bytes at a time.
  static Tensor rows(const Tensor& tensor) {
    constexpr int64_t elements = 16 / sizeof(Half);
    bool readable = tensor.stride(-1) == 1 && is_pack_aligned(tensor.const_data_ptr());
    for (int64_t i = 0; i + 1 < tensor.dim(); ++i) readable = readable && tensor.stride(i) % elements == 0;
    return readable ? tensor : torch::stable::clone(torch::stable::contiguous(tensor));
  }

  static Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type) {
    return torch::stable::new_empty(like, {sizes.data(), sizes.size()}, type);
  }

  static bool is_half(const char* op, const Tensor& like) {
    const bool half = like.scalar_type() == ScalarType::Half;
    STD_TORCH_CHECK(
        half || like.scalar_type() == ScalarType::BFloat16, op, ": the CUDA kernels take float16 and bfloat16");
    return half;
  }
};

}  // namespace vitfast
