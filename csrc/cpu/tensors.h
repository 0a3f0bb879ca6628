// Conversions and threads of the CPU operators.

#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "csrc/common/tensors.h"
#include "csrc/cpu/checked.h"
#include "csrc/cpu/kernels.h"

namespace vitfast {

template <typename T>
Tensor widened(const Tensor& tensor) {
  const Tensor rows = as_contiguous(tensor);
  const Tensor wide = new_tensor(sizes_of(rows), ScalarType::Float);
  const T* source = static_cast<const T*>(rows.const_data_ptr());
  float* target = static_cast<float*>(wide.mutable_data_ptr());
  for (int64_t i = 0; i < rows.numel(); ++i) target[i] = float(source[i]);
  return wide;
}

// A contiguous parameter in the computing type, or nothing. It is small: a pass through the dispatcher costs more than
// the conversion.
inline std::optional<Tensor> parameter(const std::optional<Tensor>& tensor, ScalarType type) {
  if (!tensor.has_value()) return std::nullopt;
  const ScalarType given = tensor->scalar_type();
  if (type == ScalarType::Float && given == ScalarType::BFloat16) return widened<torch::headeronly::BFloat16>(*tensor);
  if (type == ScalarType::Float && given == ScalarType::Half) return widened<torch::headeronly::Half>(*tensor);
  return as_contiguous(as_type(*tensor, type));
}

// Splits [0, count) among the threads; `work` is about how many elements one of them touches.
template <typename F>
void parallel(int64_t count, int64_t work, const F& f) {
  constexpr int64_t worthwhile = 16384;  // elements below which another thread costs more than it saves
  const int64_t grain = work >= worthwhile ? 1 : worthwhile / (work > 0 ? work : 1);
  if (count > 0) torch::stable::parallel_for(0, count, grain, f);
}

// The same for a kernel.
template <typename Arguments>
void parallel(int64_t count, int64_t work, Kernel<Arguments> kernel, const Arguments& arguments) {
  parallel(count, work, [&](int64_t begin, int64_t end) { kernel(arguments, begin, end); });
}

}  // namespace vitfast
