// upsample_relations: x, any strides from element `offset` on, and matrix [fine, coarse] -> out [images, heads, fine,
// fine]. SIMT_LANE_COLUMNS compiles one instance of a type, for mutation tests.

#include "csrc/upsample_relations/upsample_relations_kernel.cuh"
#include "tests/simt/programs/program.h"

template <typename T>
void run(simt_test::Program& program) {
  vitfast::UpsampleRelationsOnDevice a{};
  a.images = program.integer("images");
  a.heads = program.integer("heads");
  a.image_stride = program.integer("image_stride");
  a.head_stride = program.integer("head_stride");
  a.row_stride = program.integer("row_stride");
  a.column_stride = program.integer("column_stride");
  vitfast::RelationGroups& groups = a.groups;
  groups.fine = program.integer("fine");
  groups.coarse = int(program.integer("coarse"));
  groups.matrix_row_stride = program.integer("matrix_row_stride");
  groups.matrix_column_stride = program.integer("matrix_column_stride");
  groups.matrix = program.input<float>("matrix");
  const int64_t entries = groups.groups() * groups.coarse;
  groups.counts = program.output<int>("counts", groups.groups());
  groups.columns = program.output<int>("columns", entries);
  groups.weights = program.output<float>("weights", entries * vitfast::relation_group);
  a.x = program.input<T>("x") + program.integer("offset");
  a.out = program.output<T>("out", a.images * a.heads * groups.fine * groups.fine);
#if defined(SIMT_LANE_COLUMNS)
  vitfast::launch_upsample_relations_instance<T, SIMT_LANE_COLUMNS>(a, {});
#else
  if (program.integer("narrow") != 0) {
    vitfast::launch_upsample_relations_instance<T, vitfast::relation_narrow>(a, {});
  } else {
    vitfast::launch_upsample_relations<T>(a, {});
  }
#endif
}

int main(int argc, char** argv) {
  return simt_test::run_typed<float, vitfast::BFloat16, vitfast::Half>(
      argc, argv, [](auto& program, auto element) { run<decltype(element)>(program); });
}
