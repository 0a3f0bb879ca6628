#pragma once

#include <vector>

#include "csrc/common/tensors.h"
#include "csrc/cpu/kernels.h"

namespace vitfast {

// Nonzero elements of a matrix [fine, coarse] by rows (CSR).
template <typename C>
struct SparseRows {
  explicit SparseRows(const Tensor& matrix) : starts{0} {
    const C* element = static_cast<const C*>(matrix.const_data_ptr());
    for (int64_t row = 0; row < matrix.size(0); ++row) {
      for (int64_t column = 0; column < matrix.size(1); ++column, ++element) {
        if (*element == C(0)) continue;
        columns.push_back(column);
        weights.push_back(*element);
      }
      starts.push_back(int64_t(columns.size()));
    }
  }

  void add_to(UpsampleRelations& a) const {
    a.starts = starts.data();
    a.columns = columns.data();
    a.weights = weights.data();
  }

  std::vector<int64_t> starts, columns;
  std::vector<C> weights;
};

}  // namespace vitfast
