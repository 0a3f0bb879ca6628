// What the device's kernels of upsample_relations are told.

#pragma once

#include <cstdint>

namespace vitfast {

// Rows of the matrix go in groups of four.
constexpr int relation_group = 4;

// matrix [fine, coarse] in float32, and where its nonzero elements are listed. Entries [group][coarse], of which the
// first counts[group] are there: a column, and its weights in the four rows (behind the last row zero).
struct RelationGroups {
  const float* matrix;
  int64_t matrix_row_stride;
  int64_t matrix_column_stride;
  int64_t fine;
  int coarse;
  int* counts;     // [groups]
  int* columns;    // [groups, coarse]
  float* weights;  // [groups, coarse, 4]

  int64_t groups() const { return (fine + relation_group - 1) / relation_group; }
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
