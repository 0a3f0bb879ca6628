// Arguments of the CUDA kernel that rounds elements.

#pragma once

#include "csrc/common/types.h"

namespace vitfast {

// x [count] -> y [count], contiguous, may be equal. `seed`: one number in device memory, or null.
struct DeviceElements {
  Type type;
  const void* x;
  void* y;
  int64_t count;
  const int64_t* seed;
};

}  // namespace vitfast
