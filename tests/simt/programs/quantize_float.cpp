// quantize_float: x [count] -> y, both `offset` elements into their memory; or in place, and x is the result.

#include <cstring>

#include "csrc/quantize/quantize_float_launch.cuh"
#include "tests/simt/programs/program.h"

template <typename T, typename Layout>
void run(simt_test::Program& program) {
  const auto max_value = static_cast<typename Layout::Float>(program.number("max_value"));
  typename Layout::Bits max_bits;
  std::memcpy(&max_bits, &max_value, sizeof(max_bits));
  const auto format = vitfast::make_float_format<Layout>(
      program.integer("exponent_bits"),
      program.integer("mantissa_bits"),
      max_bits,
      program.integer("has_inf") != 0,
      program.integer("has_nan") != 0,
      program.integer("signed_zero") != 0,
      static_cast<vitfast::Overflow>(program.integer("overflow")));
  const int64_t count = program.integer("count"), offset = program.integer("offset");
  const T* x = program.input<T>("x") + offset;
  T* y = program.output<T>("y", count + offset) + offset;
  if (program.integer("in_place") != 0) {
    simt_test::copy(y, x, size_t(count) * sizeof(T));
    x = y;
  }
  const auto rounding = static_cast<vitfast::Rounding>(program.integer("rounding"));
  vitfast::launch_quantize_float<T, Layout>(x, y, count, format, rounding, program.input<int64_t>("seed"), {});
}

int main(int argc, char** argv) {
  simt_test::Program program(argc, argv);
  const std::string type = program.text("type");
  if (type == "float32") run<float, vitfast::Float32Bits>(program);
  if (type == "bfloat16") run<vitfast::BFloat16, vitfast::Float32Bits>(program);
  if (type == "float16") run<vitfast::Half, vitfast::Float32Bits>(program);
  if (type == "float64") run<double, vitfast::Float64Bits>(program);
  return program.finish();
}
