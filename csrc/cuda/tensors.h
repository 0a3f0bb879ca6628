// CUDA tensors: current stream, alignment, dispatch on the element type.

#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "csrc/common/alignment.h"
#include "csrc/common/tensors.h"
#include "csrc/cuda/kernels.h"

namespace vitfast {

// Selects the tensor's device for its lifetime and provides torch's current stream on it.
class CurrentStream {
 public:
  explicit CurrentStream(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<Stream>(stream);
  }

  operator Stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  Stream stream_ = nullptr;
};

inline bool is_compute_capability_90() {
  return device_attribute(cudaDevAttrComputeCapabilityMajor) == 9 &&
         device_attribute(cudaDevAttrComputeCapabilityMinor) == 0;
}

// A contiguous, 16-byte aligned tensor (required by TMA and 16-byte loads): the tensor itself, or a copy.
inline Tensor aligned(const Tensor& tensor) {
  const Tensor rows = as_contiguous(tensor);
  return is_pack_aligned(rows.const_data_ptr()) ? rows : torch::stable::clone(rows);
}

inline std::optional<Tensor> aligned(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? std::optional<Tensor>(aligned(*tensor)) : std::nullopt;
}

// The tensor with a contiguous last dimension and all rows 16-byte aligned: the tensor itself, or a copy.
inline Tensor with_aligned_rows(const Tensor& tensor) {
  const int64_t elements = 16 / int64_t(tensor.element_size());
  bool is_aligned = tensor.stride(-1) == 1 && is_pack_aligned(tensor.const_data_ptr());
  for (int64_t i = 0; i + 1 < tensor.dim(); ++i) is_aligned = is_aligned && tensor.stride(i) % elements == 0;
  return is_aligned ? tensor : torch::stable::clone(torch::stable::contiguous(tensor));
}

// Calls f with an element of the tensor's type; float64 has no CUDA kernels.
template <typename F>
void with_element(const char* op, Type type, const F& f) {
  switch (type) {
    case Type::float32:
      return f(float{});
    case Type::bfloat16:
      return f(BFloat16{});
    case Type::float16:
      return f(Half{});
    case Type::float64:
      STD_TORCH_CHECK(false, op, ": the CUDA kernels support float32, bfloat16 and float16, not float64");
  }
}

// The same for kernels that take 16-bit types only.
template <typename F>
void with_narrow_element(const char* op, Type type, const F& f) {
  STD_TORCH_CHECK(
      type == Type::float16 || type == Type::bfloat16, op, ": the CUDA kernel takes float16 and bfloat16 only");
  type == Type::float16 ? f(Half{}) : f(BFloat16{});
}

// The sums, of `type`, of the rows of a gradient's float partial sums.
inline Tensor sum_of_partial(const Tensor& partial, ScalarType type) {
  const int64_t chunks = partial.size(0), columns = partial.size(1);
  const Tensor sums = new_tensor(partial, {columns}, type);
  const CurrentStream stream(partial);
  with_element("gradient", type_of(sums), [&](auto element) {
    const float* data = static_cast<const float*>(partial.const_data_ptr());
    launch_partial_sums<decltype(element)>(data, sums.mutable_data_ptr(), chunks, columns, stream);
  });
  return sums;
}

}  // namespace vitfast
