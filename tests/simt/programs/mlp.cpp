// mlp, forward: x [rows, C] -> out [rows, C]. SIMT_WIDTH compiles one instance of a type, for mutation tests.

#include "csrc/mlp/mlp_kernel.cuh"
#include "tests/simt/programs/program.h"

template <typename T>
void run(simt_test::Program& program) {
  vitfast::MlpForward a{};
  a.rows = program.integer("rows");
  a.channels = program.integer("channels");
  a.hidden = program.integer("hidden");
  a.x = program.input<T>("x");
  a.fc1_weight = program.input<T>("fc1_weight");
  a.fc1_bias = program.input<T>("fc1_bias");
  a.fc2_weight = program.input<T>("fc2_weight");
  a.fc2_bias = program.input<T>("fc2_bias");
  a.residual = program.input<T>("residual");
  a.out = program.output<T>("out", a.rows * a.channels);
#if defined(SIMT_WIDTH)
  vitfast::launch_mlp_instance<T, SIMT_WIDTH, 4>(a, {});
#else
  if (program.integer("large_tiles") != 0) {
    vitfast::launch_mlp_instance<T, vitfast::mlp_max_channels, 8>(a, {});
  } else {
    vitfast::launch_mlp<T>(a, {});
  }
#endif
}

int main(int argc, char** argv) {
  return simt_test::run_typed<vitfast::Half, vitfast::BFloat16>(
      argc, argv, [](auto& program, auto element) { run<decltype(element)>(program); });
}
