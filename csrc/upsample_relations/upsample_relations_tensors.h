// Argument checks of upsample_relations.

#pragma once

#include "csrc/common/tensors.h"

namespace vitfast {

inline void check_upsample_relations(
    const Tensor& x,         // [B, H, n, n]
    const Tensor& matrix) {  // [N, n]
  const char* op = "upsample_relations";
  check_tensor(op, "x", x);
  check_tensor(op, "matrix", matrix);
  STD_TORCH_CHECK(x.dim() == 4 && x.size(2) == x.size(3), op, ": x must have shape [B, H, n, n]");
  STD_TORCH_CHECK(matrix.dim() == 2 && matrix.size(1) == x.size(3), op, ": matrix must have shape [N, n]");
}

}  // namespace vitfast
