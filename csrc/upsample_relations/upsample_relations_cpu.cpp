#include "csrc/cpu/tensors.h"
#include "csrc/upsample_relations/sparse_rows.h"
#include "csrc/upsample_relations/upsample_relations_tensors.h"

namespace vitfast {
namespace {

template <typename C>
void run(UpsampleRelations a, const Tensor& matrix, int64_t images) {
  const SparseRows<C> rows(matrix);
  rows.add_to(a);
  parallel(images * a.heads, a.fine * a.fine, [&](int64_t begin, int64_t end) {
    cpu_kernels().upsample_relations(a, begin, end);
  });
}

Tensor upsample_relations(
    const Tensor& x,         // [B, H, n, n]
    const Tensor& matrix) {  // [N, n]
  check_upsample_relations(x, matrix);
  const Tensor rows = x.stride(3) == 1 ? x : as_contiguous(x);
  const Tensor wide_matrix = *parameter(matrix, computing_type(x));
  const Tensor out = new_tensor(x, {x.size(0), x.size(1), matrix.size(0), matrix.size(0)});
  if (out.numel() == 0) return out;
  UpsampleRelations a{};
  a.type = type_of(x);
  a.x = rows.const_data_ptr();
  a.image_stride = rows.stride(0);
  a.head_stride = rows.stride(1);
  a.row_stride = rows.stride(2);
  a.out = out.mutable_data_ptr();
  a.heads = x.size(1);
  a.coarse = x.size(3);
  a.fine = matrix.size(0);
  if (a.type == Type::float64) {
    run<double>(a, wide_matrix, x.size(0));
  } else {
    run<float>(a, wide_matrix, x.size(0));
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CPU, m) {
  m.impl("upsample_relations", TORCH_BOX(&upsample_relations));
}

}  // namespace vitfast
