// The epilogues of the GEMMs' forward on their own: sums [rows, columns] in float, with the bias, scale [columns],
// residual [rows, columns] -> y.

#include "csrc/linear/gemm_epilogue.cuh"
#include "csrc/cuda/threads.cuh"
#include "tests/simt/programs/program.h"

template <typename T, vitfast::GemmEpilogue epilogue>
__global__ void epilogue_kernel(
    const float* sums, const T* scale, const T* residual, T* y, int64_t count, int64_t columns) {
  for (int64_t i = vitfast::thread_in_grid(); i < count; i += vitfast::threads_in_grid()) {
    const float factor = scale == nullptr ? 1.0f : vitfast::to_float(scale[i % columns]);
    const float source = residual == nullptr ? 0.0f : vitfast::to_float(residual[i]);
    y[i] = vitfast::round_to<T>(vitfast::finish_gemm<T, epilogue>(sums[i], factor, source));
  }
}

vitfast::GemmEpilogue epilogue_named(const std::string& activation) {
  if (activation == "gelu") return vitfast::GemmEpilogue::gelu;
  if (activation == "gelu_tanh") return vitfast::GemmEpilogue::gelu_tanh;
  return vitfast::GemmEpilogue::linear;
}

template <typename T>
void run(simt_test::Program& program) {
  const int64_t count = program.integer("count"), columns = program.integer("columns");
  const float* sums = program.input<const float>("sums");
  const T* scale = program.input<const T>("scale");
  const T* residual = program.input<const T>("residual");
  T* y = program.output<T>("y", count);
  vitfast::with_epilogue(epilogue_named(program.text("activation")), [&](auto epilogue) {
    vitfast::launch(epilogue_kernel<T, epilogue>, 4, 64, 0, {}, sums, scale, residual, y, count, columns);
  });
}

int main(int argc, char** argv) {
  return simt_test::run_typed<vitfast::BFloat16, vitfast::Half>(
      argc, argv, [](auto& program, auto element) { run<decltype(element)>(program); });
}
