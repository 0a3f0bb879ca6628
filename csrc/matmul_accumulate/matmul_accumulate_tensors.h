// matmul_accumulate on tensors: checks and allocation. A Device provides
//
//     static void run(const MatmulAccumulate&, const Tensor& like);      // the result is not empty

#pragma once

#include "csrc/common/chunks.h"
#include "csrc/common/tensors.h"
#include "csrc/matmul_accumulate/matmul_accumulate.h"
#include "csrc/quantize/rounding_arguments.h"

namespace vitfast {

struct AccumulateSizes {
  std::vector<int64_t> out;  // [..., N]
  int64_t rows, columns, depth;

  AccumulateSizes(const char* op, const Tensor& x, const Tensor& weight, int64_t chunk) : out(sizes_of(x)) {
    STD_TORCH_CHECK(x.dim() > 0, op, ": x must have at least one dimension");
    STD_TORCH_CHECK(weight.dim() == 2, op, ": weight must have shape [N, K]");
    check_like(op, "weight", weight, x, {weight.size(0), x.size(-1)});
    STD_TORCH_CHECK(chunk >= 0, op, ": chunk must be positive, or 0 for the whole sum");
    depth = out.back();
    out.back() = columns = weight.size(0);
    rows = count_rows(x);
  }
};

template <typename Device>
Tensor matmul_accumulate(
    const Tensor& x,       // [..., K]
    const Tensor& weight,  // [N, K]
    std::vector<int64_t> accumulator,
    int64_t chunk) {
  const char* op = "matmul_accumulate";
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float, op, ": x must be float32");
  const AccumulateSizes sizes(op, x, weight, chunk);
  const FloatRounding rounding = read_float_rounding(op, accumulator);
  STD_TORCH_CHECK(rounding.rounding != Rounding::stochastic, op, ": the accumulator is not rounded stochastically");

  const Tensor out = new_tensor(x, sizes.out);
  const Tensor x_rows = as_contiguous(x), weight_rows = as_contiguous(weight);
  const MatmulAccumulate arguments{
      static_cast<const float*>(x_rows.const_data_ptr()),
      static_cast<const float*>(weight_rows.const_data_ptr()),
      static_cast<float*>(out.mutable_data_ptr()),
      sizes.rows,
      sizes.columns,
      sizes.depth,
      chunk > 0 ? chunk : (sizes.depth > 0 ? sizes.depth : 1),
      rounding};
  if (out.numel() > 0) Device::run(arguments, x);
  return out;
}

}  // namespace vitfast
