#include "csrc/cpu/tensors.h"
#include "csrc/matmul_accumulate/matmul_accumulate_tensors.h"

namespace vitfast {
namespace {

struct Cpu {
  static Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& sizes) {
    return vitfast::new_tensor(like, sizes);
  }

  static void run(const MatmulAccumulate& a, const Tensor&) {
    constexpr int64_t block_rows = matmul_accumulate_block_rows;
    const int64_t row_blocks = (a.rows + block_rows - 1) / block_rows;
    const int64_t tasks = cpu_kernels().matmul_accumulate_panels(a.columns) * row_blocks;
    parallel(tasks, (a.rows < block_rows ? a.rows : block_rows) * (a.depth + 1), [&](int64_t begin, int64_t end) {
      cpu_kernels().matmul_accumulate(a, begin, end);
    });
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CPU, m) {
  m.impl("matmul_accumulate", TORCH_BOX(&matmul_accumulate<Cpu>));
}

}  // namespace vitfast
