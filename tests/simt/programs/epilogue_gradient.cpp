// The gradient of what follows a product's sum: grad_out and sum [rows, columns], scale [columns] -> grad_sum [rows,
// columns], partial_bias and partial_scale [chunks, columns]. rows_per_chunk=0: as for a call of these sizes.

#include "csrc/linear/epilogue_gradient_kernel.cuh"
#include "tests/simt/programs/program.h"

template <typename T>
void run(simt_test::Program& program) {
  vitfast::EpilogueGradient a{};
  a.rows = program.integer("rows");
  a.columns = program.integer("columns");
  a.rows_per_chunk = program.integer("rows_per_chunk");
  if (a.rows_per_chunk == 0) a.rows_per_chunk = vitfast::epilogue_gradient_rows_per_chunk(a.rows, a.columns);
  const std::string activation = program.text("activation");
  if (activation == "gelu") a.activation = vitfast::EpilogueActivation::gelu;
  if (activation == "gelu_tanh") a.activation = vitfast::EpilogueActivation::gelu_tanh;
  a.grad_out = program.input<T>("grad_out");
  a.sum = program.input<T>("sum");
  a.scale = program.input<T>("scale");
  const int64_t partial = vitfast::ceil_div(a.rows, a.rows_per_chunk) * a.columns;
  if (a.sum != nullptr) a.grad_sum = program.output<T>("grad_sum", a.rows * a.columns);
  if (program.integer("bias") != 0) a.partial_bias = program.output<float>("partial_bias", partial);
  if (a.scale != nullptr) a.partial_scale = program.output<float>("partial_scale", partial);
  vitfast::launch_epilogue_gradient<T>(a, {});
}

int main(int argc, char** argv) {
  return simt_test::run_typed<vitfast::BFloat16, vitfast::Half>(
      argc, argv, [](auto& program, auto element) { run<decltype(element)>(program); });
}
