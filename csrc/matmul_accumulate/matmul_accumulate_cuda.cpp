#include "csrc/cuda/tensors.h"
#include "csrc/matmul_accumulate/matmul_accumulate_tensors.h"

namespace vitfast {
namespace {

struct Cuda {
  static void run(const MatmulAccumulate& a, const Tensor& like) { launch_matmul_accumulate(a, CurrentStream(like)); }
};

Tensor matmul_fp16_accumulation(
    const Tensor& x,       // [..., K]
    const Tensor& weight,  // [N, K]
    bool round_accumulator,
    int64_t chunk) {
  const char* op = "matmul_fp16_accumulation";
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Half, op, ": x must be float16");
  const AccumulateSizes sizes(op, x, weight, chunk);
  constexpr int64_t step = fp16_accumulation_step;
  STD_TORCH_CHECK(sizes.depth % 8 == 0, op, ": K must be a multiple of 8, got ", sizes.depth);
  STD_TORCH_CHECK(chunk % step == 0, op, ": chunk must be a multiple of 16, or 0 for the whole sum, got ", chunk);

  const Tensor out = new_tensor(x, sizes.out, ScalarType::Float);
  const Tensor x_rows = aligned(x), weight_rows = aligned(weight);
  const MatmulFp16Accumulation arguments{
      static_cast<const Half*>(x_rows.const_data_ptr()),
      static_cast<const Half*>(weight_rows.const_data_ptr()),
      static_cast<float*>(out.mutable_data_ptr()),
      sizes.rows,
      sizes.columns,
      sizes.depth,
      chunk > 0 ? chunk : sizes.depth / step * step + step,
      round_accumulator};
  launch_matmul_fp16_accumulation(arguments, CurrentStream(x));
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CUDA, m) {
  m.impl("matmul_accumulate", TORCH_BOX(&matmul_accumulate<Cuda>));
  m.impl("matmul_fp16_accumulation", TORCH_BOX(&matmul_fp16_accumulation));
}

}  // namespace vitfast
