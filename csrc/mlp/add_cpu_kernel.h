// The addition of a residual to a product, in place.

#pragma once

#include "csrc/cpu/dispatch_type.h"
#include "csrc/cpu/vector.h"

namespace vitfast::VITFAST_ISA {

void add_in_place(const AddInPlace& a, int64_t begin, int64_t end) {
  dispatch_type(a.type, [&](auto stored, auto computed) {
    using T = decltype(stored);
    using C = decltype(computed);
    const T* x = static_cast<const T*>(a.x) + begin;
    T* sum = static_cast<T*>(a.sum) + begin;
    for_each_vector<C>(end - begin, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
      store_up_to<C>(sum + i, load_up_to<C>(sum + i, n) + load_up_to<C>(x + i, n), n);
    });
  });
}

}  // namespace vitfast::VITFAST_ISA
