// The epilogue of the products on its own: sums [rows, columns] in float, with the bias, scale [columns],
// residual [rows, columns] -> y, as a thread of CUTLASS's kernels calls it, on eight neighbours at a time.

#include "csrc/linear/gemm_epilogue.cuh"
#include "csrc/cuda/threads.cuh"
#include "tests/simt/programs/program.h"

constexpr int width = 8;

struct Values {
  float value[width];
  __device__ float& operator[](int i) { return value[i]; }
  __device__ const float& operator[](int i) const { return value[i]; }
};

template <typename T>
__device__ Values read(const T* from, int64_t first, float otherwise) {
  Values values;
  for (int i = 0; i < width; ++i) values[i] = from == nullptr ? otherwise : vitfast::to_float(from[first + i]);
  return values;
}

template <typename T>
__global__ void epilogue_kernel(
    const float* sums,
    const T* scale,
    const T* residual,
    T* y,
    int64_t count,
    int64_t columns,
    const vitfast::GemmEpilogue epilogue) {
  for (int64_t i = vitfast::thread_in_grid() * width; i < count; i += vitfast::threads_in_grid() * width) {
    const Values finished = vitfast::finish_gemm<T, width>(
        read(sums, i, 0.0f), read(scale, i % columns, 1.0f), read(residual, i, 0.0f), epilogue);
    for (int j = 0; j < width; ++j) y[i + j] = vitfast::round_to<T>(finished[j]);
  }
}

vitfast::EpilogueActivation activation_named(const std::string& name) {
  if (name == "gelu") return vitfast::EpilogueActivation::gelu;
  if (name == "gelu_tanh") return vitfast::EpilogueActivation::gelu_tanh;
  return vitfast::EpilogueActivation::none;
}

template <typename T>
void run(simt_test::Program& program) {
  const int64_t count = program.integer("count");
  const float* sums = program.input<const float>("sums");
  const std::string activation = program.text("activation");
  const vitfast::GemmEpilogue epilogue{activation_named(activation), false};
  vitfast::launch(
      epilogue_kernel<T>,
      4,
      64,
      0,
      {},
      sums,
      program.input<const T>("scale"),
      program.input<const T>("residual"),
      program.output<T>("y", count),
      count,
      program.integer("columns"),
      epilogue);
}

int main(int argc, char** argv) {
  return simt_test::run_typed<vitfast::BFloat16, vitfast::Half>(
      argc, argv, [](auto& program, auto element) { run<decltype(element)>(program); });
}
