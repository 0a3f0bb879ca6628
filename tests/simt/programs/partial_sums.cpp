// partial [chunks, columns] in float -> sums [columns].

#include "csrc/cuda/partial_sums.cuh"
#include "tests/simt/programs/program.h"

template <typename T>
void run(simt_test::Program& program) {
  const int64_t chunks = program.integer("chunks"), columns = program.integer("columns");
  vitfast::launch_partial_sums<T>(
      program.input<const float>("partial"), program.output<T>("sums", columns), chunks, columns, {});
}

int main(int argc, char** argv) {
  return simt_test::run_typed<vitfast::BFloat16, vitfast::Half, float>(
      argc, argv, [](auto& program, auto element) { run<decltype(element)>(program); });
}
