#include <cmath>

#include "csrc/packed/packed_parallel.h"

namespace vitfast {
namespace {

Tensor packed_performer(
    const Tensor& kqv,         // [B, N, 3 D]
    const Tensor& projection,  // [M, D]
    double epsilon) {
  constexpr const char* op = "packed_performer";
  STD_TORCH_CHECK(
      kqv.dim() == 3 && kqv.size(2) % 3 == 0 && kqv.scalar_type() == ScalarType::Float,
      "packed_performer: kqv must be float32 [B, N, 3 D]");
  const int64_t batch = kqv.size(0), tokens = kqv.size(1), dim = kqv.size(2) / 3;
  STD_TORCH_CHECK(
      projection.dim() == 2 && projection.size(0) > 0 && projection.size(1) == dim &&
          projection.scalar_type() == ScalarType::Float,
      op,
      ": projection must be float32 [M, ",
      dim,
      "], M at least 1");
  STD_TORCH_CHECK(epsilon > 0, "packed_performer: epsilon must be above 0");
  const Tensor rows_of_tokens = as_contiguous(kqv), weights = as_contiguous(projection);
  const Tensor out = new_tensor({batch, tokens, dim}, ScalarType::Float);
  const int64_t rows = batch * tokens, features = weights.size(0);
  if (rows == 0 || dim == 0) return out;
  PackedPerformer a{
      static_cast<const float*>(rows_of_tokens.const_data_ptr()),
      static_cast<const float*>(weights.const_data_ptr()),
      tokens,
      dim,
      features,
      std::log(double(features) * epsilon),
      nullptr,
      static_cast<float*>(out.mutable_data_ptr())};
  const int64_t sections = batch * a.sections();
  const Tensor sums = new_tensor({sections * a.sums_size()}, ScalarType::Float);
  a.sums = static_cast<float*>(sums.mutable_data_ptr());
  const int64_t wanted = worthwhile_threads(4 * rows * dim * features), threads = wanted < sections ? wanted : sections;
  const PackedKernels& kernels = packed_kernels();
  const Workspace workspace(kernels.performer_workspace(a), threads);
  for_each_part(
      threads, sections, workspace, [&](Range part, char* memory) { kernels.performer_keys(a, part, memory); });
  for_each_part(
      threads, rows, workspace, [&](Range part, char* memory) { kernels.performer_queries(a, part, memory); });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CPU, m) {
  m.impl("packed_performer", CHECKED_BOX(&packed_performer));
}

}  // namespace vitfast
