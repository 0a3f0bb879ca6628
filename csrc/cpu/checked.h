// Checks of arguments that all CPU operators make before their own: they protect direct calls of torch.ops.vitfast.

#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "csrc/common/tensors.h"

namespace vitfast {

// A tensor of the CPU whose memory covers its shape; resize_(0) of its storage frees it.
inline void check_argument(const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.is_cpu(), "all tensors must be on the CPU, as one of them is");
  if (tensor.numel() == 0) return;
  int64_t last = tensor.storage_offset(), bytes = 0;
  for (int64_t d = 0; d < tensor.dim(); ++d) last += (tensor.size(d) - 1) * tensor.stride(d);
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &bytes));
  STD_TORCH_CHECK(
      (last + 1) * int64_t(tensor.element_size()) <= bytes,
      "a tensor's memory was freed: its storage has ",
      bytes,
      " bytes, fewer than its shape requires");
}

inline void check_argument(const std::optional<Tensor>& tensor) {
  if (tensor.has_value()) check_argument(*tensor);
}

inline void check_argument(const std::vector<std::optional<Tensor>>& tensors) {
  for (const auto& tensor : tensors) check_argument(tensor);
}

// All integers are sizes and counts, whose products must not overflow.
inline void check_argument(int64_t value) {
  STD_TORCH_CHECK(value >= 0 && value <= INT32_MAX, "an integer must be at least 0 and below 2^31, got ", value);
}

template <typename T>
void check_argument(const T&) {}

template <auto function>
struct Checked;

template <typename Result, typename... Arguments, Result (*function)(Arguments...)>
struct Checked<function> {
  static Result call(Arguments... arguments) {
    (check_argument(arguments), ...);
    return function(std::forward<Arguments>(arguments)...);
  }
};

}  // namespace vitfast

// TORCH_BOX of an operator with these checks.
#define CHECKED_BOX(function) TORCH_BOX((&::vitfast::Checked<(function)>::call))
