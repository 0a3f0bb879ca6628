// The two forms of an operator that rounds every element, on any device: a new tensor, and in place.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

namespace vitfast {

// `round(source, target)` rounds a contiguous tensor into a contiguous one, perhaps the same.
template <typename F>
torch::stable::Tensor rounded_copy(const torch::stable::Tensor& x, torch::stable::Tensor y, const F& round) {
  round(x.is_contiguous() ? x : torch::stable::contiguous(x), y);
  return y;
}

template <typename F>
void round_in_place(torch::stable::Tensor x, const F& round) {
  const torch::stable::Tensor rows = x.is_contiguous() ? x : torch::stable::contiguous(x);
  round(rows, rows);
  if (!x.is_contiguous()) torch::stable::copy_(x, rows);
}

}  // namespace vitfast
