// matrix x matrixᵀ for a sparse matrix: each pass combines a few rows, one vector of columns at a time. Transposing
// between the passes lets the second pass combine columns with the code of the first.

#pragma once

#include "csrc/cpu/matrix.h"
#include "csrc/cpu/vector.h"

namespace vitfast::VITFAST_ISA {

// target = Σ weight * row over the nonzero elements of row `fine` of the matrix.
template <typename C, typename T>
VITFAST_INLINE void combine_rows(
    const UpsampleRelations& a, int64_t fine, const C* rows, int64_t stride, int64_t size, T* target) {
  const auto* weights = static_cast<const C*>(a.weights);
  const int64_t begin = a.starts[fine], end = a.starts[fine + 1];
  for_each_vector<C>(size, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    Vector<C> sum{};
    for (int64_t k = begin; k < end; ++k) sum += load(rows + a.columns[k] * stride + i) * weights[k];
    store_up_to<C>(target + i, sum, count);
  });
}

template <typename T, typename C>
void upsample_heads(const UpsampleRelations& a, int64_t begin, int64_t end) {
  const int64_t coarse_stride = padded<C>(a.coarse), fine_stride = padded<C>(a.fine);
  const Scratch<C> transposed(a.coarse * coarse_stride), by_rows(a.fine * coarse_stride),
      by_columns(a.coarse * fine_stride);
  for (int64_t task = begin; task < end; ++task) {
    const T* x = static_cast<const T*>(a.x) + task / a.heads * a.image_stride + task % a.heads * a.head_stride;
    T* out = static_cast<T*>(a.out) + task * a.fine * a.fine;
    pack_transposed(x, a.row_stride, a.coarse, a.coarse, transposed.data);
    for (int64_t row = 0; row < a.fine; ++row) {  // matrix xᵀ
      combine_rows<C>(a, row, transposed.data, coarse_stride, coarse_stride, by_rows.data + row * coarse_stride);
    }
    pack_transposed(by_rows.data, coarse_stride, a.fine, a.coarse, by_columns.data);  // x matrixᵀ
    for (int64_t row = 0; row < a.fine; ++row) {
      combine_rows<C>(a, row, by_columns.data, fine_stride, a.fine, out + row * a.fine);
    }
  }
}

// Tasks are heads of images.
void upsample_relations(const UpsampleRelations& a, int64_t begin, int64_t end) {
  dispatch_type(a.type, [&](auto t, auto c) { upsample_heads<decltype(t), decltype(c)>(a, begin, end); });
}

}  // namespace vitfast::VITFAST_ISA
