// Argument checks of mlp.

#pragma once

#include "csrc/common/tensors.h"

namespace vitfast {

inline void check_mlp_weights(
    const Tensor& x,             // [..., C]
    const Tensor& fc1_weight,    // [F, C]
    const Tensor& fc2_weight) {  // [C_out, F]
  const char* op = "mlp";
  check_tensor(op, "x", x);
  STD_TORCH_CHECK(x.dim() > 0, op, ": x must have at least one dimension");
  STD_TORCH_CHECK(fc1_weight.dim() == 2 && fc2_weight.dim() == 2, op, ": the weights must have two dimensions");
  check_like(op, "fc1_weight", fc1_weight, x, {fc1_weight.size(0), x.size(-1)});
  check_like(op, "fc2_weight", fc2_weight, x, {fc2_weight.size(0), fc1_weight.size(0)});
}

}  // namespace vitfast
