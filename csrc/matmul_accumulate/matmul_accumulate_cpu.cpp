#include "csrc/cpu/tensors.h"
#include "csrc/quantize/float_rounding.h"

namespace vitfast {
namespace {

// Rows of a task: a multiple of every tile, enough to pay for packing the panel that another thread packs, too.
constexpr int64_t rows_per_block = 192;

Tensor matmul_accumulate(
    const Tensor& x,       // [..., K]
    const Tensor& weight,  // [N, K]
    std::vector<int64_t> accumulator,
    int64_t chunk) {
  const char* op = "matmul_accumulate";
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float, op, ": x must be float32");
  STD_TORCH_CHECK(x.dim() > 0, op, ": x must have at least one dimension");
  check_same_type(op, "weight", weight, x);
  STD_TORCH_CHECK(weight.dim() == 2, op, ": weight must have shape [N, K]");
  check_sizes(op, "weight", weight, {weight.size(0), x.size(-1)});
  STD_TORCH_CHECK(chunk >= 0, op, ": chunk must be positive, or 0 for the whole sum");
  const FloatRounding rounding = read_float_rounding(op, accumulator);
  STD_TORCH_CHECK(rounding.rounding != Rounding::stochastic, op, ": the accumulator is not rounded stochastically");

  std::vector<int64_t> sizes = sizes_of(x);
  const int64_t depth = sizes.back(), columns = weight.size(0);
  sizes.back() = columns;
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < sizes.size(); ++i) rows *= sizes[i];
  const Tensor out = new_tensor(x, sizes);
  const Tensor x_rows = as_contiguous(x), weight_rows = as_contiguous(weight);
  const MatmulAccumulate arguments{
      static_cast<const float*>(x_rows.const_data_ptr()),
      static_cast<const float*>(weight_rows.const_data_ptr()),
      static_cast<float*>(out.mutable_data_ptr()),
      rows,
      columns,
      depth,
      chunk > 0 ? chunk : (depth > 0 ? depth : 1),
      rows_per_block,
      rounding};
  if (out.numel() == 0) return out;
  const int64_t tasks =
      cpu_kernels().matmul_accumulate_panels(columns) * ((rows + rows_per_block - 1) / rows_per_block);
  parallel(tasks, (rows < rows_per_block ? rows : rows_per_block) * (depth + 1), [&](int64_t begin, int64_t end) {
    cpu_kernels().matmul_accumulate(arguments, begin, end);
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CPU, m) {
  m.impl("matmul_accumulate", TORCH_BOX(&matmul_accumulate));
}

}  // namespace vitfast
