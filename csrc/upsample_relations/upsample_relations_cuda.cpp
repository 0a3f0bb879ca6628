#include "csrc/cuda/tensors.h"
#include "csrc/upsample_relations/upsample_relations_tensors.h"

namespace vitfast {
namespace {

Tensor upsample_relations(
    const Tensor& x,         // [B, H, n, n]
    const Tensor& matrix) {  // [N, n]
  const char* op = "upsample_relations";
  check_upsample_relations(x, matrix);
  STD_TORCH_CHECK(is_on_device_of(matrix, x), op, ": matrix must be on the device of x");
  STD_TORCH_CHECK(x.size(3) <= relation_max_coarse, op, ": a head of x does not fit the shared memory of a block");
  const CurrentStream stream(x);
  const int64_t fine = matrix.size(0);
  const Tensor out = new_tensor(x, {x.size(0), x.size(1), fine, fine});
  if (out.numel() == 0) return out;
  const Tensor wide_matrix = as_type(matrix, ScalarType::Float);
  RelationGroups groups{};
  groups.matrix = static_cast<const float*>(wide_matrix.const_data_ptr());
  groups.matrix_row_stride = wide_matrix.stride(0);
  groups.matrix_column_stride = wide_matrix.stride(1);
  groups.fine = fine;
  groups.coarse = int(x.size(3));
  const Tensor counts = new_tensor(x, {groups.groups()}, ScalarType::Int);
  const Tensor columns = new_tensor(x, {groups.groups(), groups.coarse}, ScalarType::Int);
  const Tensor weights = new_tensor(x, {groups.groups(), groups.coarse, relation_group}, ScalarType::Float);
  groups.counts = static_cast<int*>(counts.mutable_data_ptr());
  groups.columns = static_cast<int*>(columns.mutable_data_ptr());
  groups.weights = static_cast<float*>(weights.mutable_data_ptr());
  const UpsampleRelationsOnDevice arguments{
      x.const_data_ptr(),
      x.stride(0),
      x.stride(1),
      x.stride(2),
      x.stride(3),
      out.mutable_data_ptr(),
      x.size(0),
      x.size(1),
      groups};
  with_element(op, type_of(x), [&](auto element) { launch_upsample_relations<decltype(element)>(arguments, stream); });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CUDA, m) {
  m.impl("upsample_relations", TORCH_BOX(&upsample_relations));
}

}  // namespace vitfast
