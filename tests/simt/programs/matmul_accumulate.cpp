// matmul_accumulate: x [rows, depth], weight [columns, depth] -> out [rows, columns].

#include "csrc/matmul_accumulate/matmul_accumulate_kernel.cuh"
#include "csrc/matmul_accumulate/matmul_fp16_accumulation_kernel.cuh"
#include "tests/simt/programs/float_rounding.h"

// unit=tensor_core: x and weight are half, and rounds says whether the accumulators are.
int main(int argc, char** argv) {
  simt_test::Program program(argc, argv);
  const int64_t rows = program.integer("rows"), columns = program.integer("columns");
  const int64_t depth = program.integer("depth"), chunk = program.integer("chunk");
  float* out = program.output<float>("out", rows * columns);
  if (program.text("unit") == "tensor_core") {
    const auto* x = program.input<const vitfast::Half>("x");
    const auto* weight = program.input<const vitfast::Half>("weight");
    const bool rounds = program.integer("rounds") != 0;
    vitfast::launch_matmul_fp16_accumulation({x, weight, out, rows, columns, depth, chunk, rounds}, {});
  } else {
    const auto *x = program.input<const float>("x"), *weight = program.input<const float>("weight");
    const vitfast::FloatRounding rounding = simt_test::float_rounding(program, "rounding");
    vitfast::launch_matmul_accumulate({x, weight, out, rows, columns, depth, chunk, rounding}, {});
  }
  program.output_bank_conflicts();
  return program.finish();
}
