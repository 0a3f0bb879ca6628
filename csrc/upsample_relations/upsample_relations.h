// Arguments and limits of the CUDA kernels of upsample_relations.

#pragma once

#include "csrc/common/chunks.h"

namespace vitfast {

constexpr int relation_group = 4;          // rows of the matrix that are processed together
constexpr int relation_max_coarse = 1024;  // above what fits for any type

// matrix [fine, coarse] in float32, and the lists of its nonzero columns by groups of rows: the first counts[group]
// entries of columns[group] and weights[group] are valid. Weights of rows past the end are zero.
struct RelationGroups {
  const float* matrix;
  int64_t matrix_row_stride;
  int64_t matrix_column_stride;
  int64_t fine;
  int coarse;
  int* counts;     // [groups]
  int* columns;    // [groups, coarse]
  float* weights;  // [groups, coarse, 4]

  int64_t groups() const { return ceil_div(fine, relation_group); }
};

// x [images, heads, coarse, coarse] -> out [images, heads, fine, fine], contiguous.
struct UpsampleRelationsOnDevice {
  const void* x;
  int64_t image_stride;
  int64_t head_stride;
  int64_t row_stride;
  int64_t column_stride;
  void* out;
  int64_t images;
  int64_t heads;
  RelationGroups groups;
};

}  // namespace vitfast
