#include "csrc/cpu/tensors.h"
#include "csrc/upsample_relations/sparse_rows.h"
#include "csrc/upsample_relations/upsample_relations_tensors.h"

namespace vitfast {
namespace {

template <typename C>
void run(UpsampleRelations a, const Tensor& matrix, int64_t images) {
  const SparseRows<C> rows(matrix);
  rows.add_to(a);
  parallel(images * a.heads, a.fine * a.fine, cpu_kernels().upsample_relations, a);
}

Tensor upsample_relations(
    const Tensor& x,         // [B, H, n, n]
    const Tensor& matrix) {  // [N, n]
  check_upsample_relations(x, matrix);
  const Tensor rows = x.stride(3) == 1 ? x : as_contiguous(x);
  const Tensor wide_matrix = *parameter(matrix, computing_type(x));
  const Tensor out = new_tensor(x, {x.size(0), x.size(1), matrix.size(0), matrix.size(0)});
  if (out.numel() == 0) return out;
  const UpsampleRelations a{
      type_of(x),
      rows.const_data_ptr(),
      rows.stride(0),
      rows.stride(1),
      rows.stride(2),
      out.mutable_data_ptr(),
      x.size(1),
      x.size(3),
      matrix.size(0)};
  if (a.type == Type::float64) {
    run<double>(a, wide_matrix, x.size(0));
  } else {
    run<float>(a, wide_matrix, x.size(0));
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CPU, m) {
  m.impl("upsample_relations", CHECKED_BOX(&upsample_relations));
}

}  // namespace vitfast
