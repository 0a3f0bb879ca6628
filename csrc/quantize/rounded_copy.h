// The two forms of an operator that rounds every element, on any device: a new tensor, and in place. A `Rounder` is one
// operator on one device:
//
//     static constexpr const char* name;
//     static Tensor empty_like(const Tensor&);
//     static void round(const Tensor& x, const Tensor& y, const std::vector<int64_t>& rounding,
//                       const std::optional<Tensor>& seed);      contiguous tensors, perhaps the same

#pragma once

#include "csrc/common/tensors.h"

namespace vitfast {

template <typename Rounder>
Tensor rounded_copy(const Tensor& x, std::vector<int64_t> rounding, const std::optional<Tensor>& seed) {
  check_tensor(Rounder::name, "x", x);
  const Tensor y = Rounder::empty_like(x);
  Rounder::round(as_contiguous(x), y, rounding, seed);
  return y;
}

template <typename Rounder>
void round_in_place(Tensor x, std::vector<int64_t> rounding, const std::optional<Tensor>& seed) {
  check_tensor(Rounder::name, "x", x);
  const Tensor rows = as_contiguous(x);
  Rounder::round(rows, rows, rounding, seed);
  if (!x.is_contiguous()) torch::stable::copy_(x, rows);
}

}  // namespace vitfast
