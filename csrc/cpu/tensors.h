// Conversions and threads of the CPU operators.

#pragma once

#include <cstring>
#include <tuple>

#include "csrc/common/tensors.h"
#include "csrc/cpu/kernels.h"

namespace vitfast {

inline float widened(BFloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline float widened(Half x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7fff;
  const bool finite = magnitude < 0x7c00;
  const uint32_t bits = sign | magnitude << 13 | (finite ? 0 : 0x7f800000);
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return finite ? value * 0x1p112f : value;  // the fields are in place, the exponent is 112 too small
}

template <typename T>
Tensor widened(const Tensor& tensor) {
  const Tensor rows = as_contiguous(tensor);
  const Tensor wide = new_tensor(sizes_of(rows), ScalarType::Float);
  const T* source = static_cast<const T*>(rows.const_data_ptr());
  float* target = static_cast<float*>(wide.mutable_data_ptr());
  for (int64_t i = 0; i < rows.numel(); ++i) target[i] = widened(source[i]);
  return wide;
}

// A contiguous parameter in the computing type, or nothing. It is small: a pass through the dispatcher costs more than
// the conversion.
inline std::optional<Tensor> parameter(const std::optional<Tensor>& tensor, ScalarType type) {
  if (!tensor.has_value()) return std::nullopt;
  if (type == ScalarType::Float && tensor->scalar_type() == ScalarType::BFloat16) return widened<BFloat16>(*tensor);
  if (type == ScalarType::Float && tensor->scalar_type() == ScalarType::Half) return widened<Half>(*tensor);
  return as_contiguous(as_type(*tensor, type));
}

// Whether a result of this size had better not pass through the caches.
inline bool exceeds_caches(const Tensor& tensor) {
  constexpr int64_t bytes = int64_t(8) << 20;
  return tensor.numel() * element_size(tensor) >= bytes;
}

// Splits [0, count) among the threads; `work` is about how many elements one of them touches.
template <typename F>
void parallel(int64_t count, int64_t work, const F& f) {
  constexpr int64_t worthwhile = 16384;  // elements below which another thread costs more than it saves
  const int64_t grain = work >= worthwhile ? 1 : worthwhile / (work > 0 ? work : 1);
  if (count > 0) torch::stable::parallel_for(0, count, grain, f);
}

}  // namespace vitfast
