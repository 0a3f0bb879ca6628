#include <algorithm>

#include "csrc/cpu/tensors.h"
#include "csrc/matmul_accumulate/matmul_accumulate_tensors.h"

namespace vitfast {
namespace {

struct Cpu {
  static void run(const MatmulAccumulate& a, const Tensor&) {
    constexpr int64_t block_rows = matmul_accumulate_block_rows;
    const int64_t tasks = cpu_kernels().matmul_accumulate_panels(a.columns) * ceil_div(a.rows, block_rows);
    parallel(tasks, std::min(a.rows, block_rows) * (a.depth + 1), cpu_kernels().matmul_accumulate, a);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CPU, m) {
  m.impl("matmul_accumulate", CHECKED_BOX(&matmul_accumulate<Cpu>));
}

}  // namespace vitfast
