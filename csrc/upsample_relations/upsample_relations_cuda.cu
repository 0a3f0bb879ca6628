#include "csrc/cuda/current_stream.cuh"
#include "csrc/upsample_relations/upsample_relations_launch.cuh"
#include "csrc/upsample_relations/upsample_relations_tensors.h"

namespace vitfast {
namespace {

Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type) {
  return torch::stable::new_empty(like, {sizes.data(), sizes.size()}, type);
}

Tensor upsample_relations(
    const Tensor& x,         // [B, H, n, n]
    const Tensor& matrix) {  // [N, n]
  const char* op = "upsample_relations";
  check_upsample_relations(x, matrix);
  STD_TORCH_CHECK(x.scalar_type() != ScalarType::Double, op, ": the CUDA kernel takes float32, bfloat16 and float16");
  STD_TORCH_CHECK(
      matrix.is_cuda() && matrix.get_device_index() == x.get_device_index(), op, ": matrix must be on x's device");
  STD_TORCH_CHECK(x.size(3) <= relation_max_coarse, op, ": a head of x does not fit the shared memory of a block");
  const CurrentStream stream(x);
  const int64_t fine = matrix.size(0);
  const Tensor out = new_tensor(x, {x.size(0), x.size(1), fine, fine}, x.scalar_type());
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
  switch (type_of(x)) {
    case Type::bfloat16:
      launch_upsample_relations<BFloat16>(arguments, stream);
      break;
    case Type::float16:
      launch_upsample_relations<Half>(arguments, stream);
      break;
    default:
      launch_upsample_relations<float>(arguments, stream);
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CUDA, m) {
  m.impl("upsample_relations", TORCH_BOX(&upsample_relations));
}

}  // namespace vitfast
