// quantize_float or quantize_fixed: x [count] -> y, both `offset` elements into their memory; or in place, and x is the
// result.

#include "csrc/quantize/round_elements_kernel.cuh"
#include "tests/simt/programs/float_rounding.h"

vitfast::FixedPointRounding fixed_rounding(simt_test::Program& program) {
  const auto make = [&](auto computed) {
    return vitfast::make_fixed_format<decltype(computed)>(
        program.integer("word_length"),
        program.integer("fraction_length"),
        program.integer("symmetric") != 0,
        static_cast<vitfast::FixedOverflow>(program.integer("overflow")));
  };
  return {static_cast<vitfast::Rounding>(program.integer("rounding")), make(float{}), make(double{})};
}

template <typename T>
void run(simt_test::Program& program, vitfast::Type type) {
  const int64_t count = program.integer("count"), offset = program.integer("offset");
  const T* x = program.input<T>("x") + offset;
  T* y = program.output<T>("y", count + offset) + offset;
  if (program.integer("in_place") != 0) {
    simt_test::copy(y, x, size_t(count) * sizeof(T));
    x = y;
  }
  const vitfast::DeviceElements elements{type, x, y, count, program.input<int64_t>("seed")};
  if (program.text("operator") == "quantize_fixed") {
    vitfast::launch_round_elements(elements, fixed_rounding(program), {});
  } else {
    vitfast::launch_round_elements(elements, simt_test::float_rounding(program, "rounding"), {});
  }
}

int main(int argc, char** argv) {
  simt_test::Program program(argc, argv);
  const std::string type = program.text("type");
  if (type == "float32") run<float>(program, vitfast::Type::float32);
  if (type == "bfloat16") run<vitfast::BFloat16>(program, vitfast::Type::bfloat16);
  if (type == "float16") run<vitfast::Half>(program, vitfast::Type::float16);
  if (type == "float64") run<double>(program, vitfast::Type::float64);
  return program.finish();
}
