#include "csrc/attention/attention_tensors.h"
#include "csrc/common/chunks.h"
#include "csrc/cpu/tensors.h"

namespace vitfast {
namespace {

struct Cpu {
  static constexpr bool sums_bias_over_images = true;

  static Tensor rows(const Tensor& tensor) {
    return tensor.size(-1) <= 1 || tensor.stride(-1) == 1 ? tensor : torch::stable::contiguous(tensor);
  }

  static Tensor positions(const Tensor& position) { return rows(position); }

  static void forward(const AttentionForward& a, const Tensor&) { run(a, cpu_kernels().attention_forward); }

  static void forward(const GatedPositionalAttention& a, const Tensor&) {
    run(a, cpu_kernels().gated_positional_attention);
  }

  template <typename Arguments>
  static void run(Arguments a, Kernel<Arguments> kernel) {
    // with few heads, their rows are split for about four tasks per thread; results do not depend on the split
    const int64_t heads = a.batch * a.heads;
    const int64_t wanted_tasks = 4 * int64_t(torch::stable::get_num_threads());
    constexpr int64_t min_rows = 48;
    int64_t splits = heads >= wanted_tasks ? 1 : ceil_div(wanted_tasks, heads);
    if (splits > a.tokens / min_rows) splits = a.tokens / min_rows;
    a.row_splits = splits > 1 ? splits : 1;
    const int64_t work = a.tokens * a.tokens * a.head_dim / a.row_splits / 8;
    parallel(heads * a.row_splits, work, kernel, a);
  }

  static void backward(const AttentionBackward& a, const Tensor&) {
    const bool sums_over_batch = a.grad_bias != nullptr && a.bias_batch_stride == 0;
    const int64_t work = a.tokens * a.tokens * a.head_dim / 4;
    parallel(sums_over_batch ? a.heads : a.batch * a.heads, work, cpu_kernels().attention_backward, a);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CPU, m) {
  m.impl("attention_forward", CHECKED_BOX(&attention_forward<Cpu>));
  m.impl("attention_backward", CHECKED_BOX(&attention_backward<Cpu>));
  m.impl("attention_packed_forward", CHECKED_BOX(&attention_packed_forward<Cpu>));
  m.impl("attention_packed_backward", CHECKED_BOX(&attention_packed_backward<Cpu>));
  m.impl("gated_positional_attention", CHECKED_BOX(&gated_positional_attention<Cpu>));
}

}  // namespace vitfast
