// matmul_accumulate: x [rows, depth], weight [columns, depth] -> out [rows, columns].

#include "csrc/matmul_accumulate/matmul_accumulate_launch.cuh"
#include "tests/simt/programs/float_rounding.h"

int main(int argc, char** argv) {
  simt_test::Program program(argc, argv);
  const int64_t rows = program.integer("rows"), columns = program.integer("columns");
  vitfast::launch_matmul_accumulate(
      {program.input<const float>("x"),
       program.input<const float>("weight"),
       program.output<float>("out", rows * columns),
       rows,
       columns,
       program.integer("depth"),
       program.integer("chunk"),
       simt_test::float_rounding(program, "rounding")},
      {});
  return program.finish();
}
