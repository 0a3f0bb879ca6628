// From a Type to the template arguments of a kernel: the stored type and the type that is computed in.

#pragma once

#include "csrc/cpu/kernels.h"

namespace vitfast::VITFAST_ISA {

// Calls f(T{}, C{}) for the type's stored and computing C++ types.
template <typename F>
inline void dispatch_type(Type type, const F& f) {
  switch (type) {
    case Type::float32:
      return f(float{}, float{});
    case Type::bfloat16:
      return f(BFloat16{}, float{});
    case Type::float16:
      return f(Half{}, float{});
    case Type::float64:
      return f(double{}, double{});
  }
}

}  // namespace vitfast::VITFAST_ISA
