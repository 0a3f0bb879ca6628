#include "csrc/cpu/tensors.h"
#include "csrc/layer_norm/layer_norm_tensors.h"

namespace vitfast {
namespace {

struct Cpu {
  static constexpr int64_t max_chunks = 64, min_rows_per_chunk = 16;

  static std::tuple<std::optional<Tensor>, std::optional<Tensor>, Type> parameters(
      const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, const Tensor& x) {
    const ScalarType computing = computing_type(x);
    return {
        parameter(weight, computing),
        parameter(bias, computing),
        computing == ScalarType::Double ? Type::float64 : Type::float32};
  }

  static void check(const char* op, ScalarType stream, ScalarType branch, int64_t) {
    STD_TORCH_CHECK(branch == stream, op, ": on the CPU all tensors must have one dtype");
  }

  static Tensor rows(const Tensor& tensor) { return as_contiguous(tensor); }
  // the kernel adds to them
  static Tensor partial(const Tensor& like, const std::vector<int64_t>& sizes) {
    return new_zeros(like, sizes, computing_type(like));
  }
  static Tensor sum(const Tensor& partial) { return sum_of_rows(partial); }

  static void forward(const LayerNormForward& a, const Tensor&) {
    parallel(a.rows, a.channels, cpu_kernels().layer_norm_forward, a);
  }

  static void backward(const LayerNormBackward& a, const Tensor&) {
    const int64_t chunks = ceil_div(a.rows, a.rows_per_chunk);
    parallel(chunks, a.rows_per_chunk * a.channels, cpu_kernels().layer_norm_backward, a);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CPU, m) {
  m.impl("layer_norm_forward", CHECKED_BOX(&layer_norm_forward<Cpu>));
  m.impl("add_layer_norm_forward", CHECKED_BOX(&add_layer_norm_forward<Cpu>));
  m.impl("layer_norm_backward", CHECKED_BOX(&layer_norm_backward<Cpu>));
}

}  // namespace vitfast
